/* The machine's NICs. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "vmm/emulated/e1000.h"
#include "vmm/machine/machine_internal.h"
#include "vmm/virtio/net.h"

/* An address that is the same in every run of this machine, and another machine's most likely not: FNV-1a of its name and the NIC's
 * number behind the prefix for virtual machines that everybody uses. */
static void make_mac(const char *name, unsigned number, uint8_t mac[6])
{
    uint32_t h = 2166136261u;
    for (const char *p = name; *p; p++) h = (h ^ (uint8_t)*p) * 16777619u;
    h = (h ^ number) * 16777619u;
    const uint8_t made[6] = {0x52, 0x54, 0x00, (uint8_t)(h >> 16), (uint8_t)(h >> 8), (uint8_t)h};
    memcpy(mac, made, 6);
}

static void destroy_virtio(void *dev)
{
    virtio_net_destroy(dev);
}

static int add_virtio(struct machine *m, const struct machine_nic *nic, struct machine_device *d, struct nerr *e)
{
    struct virtio_net *v;
    struct virtio_net_options o = {.name = d->id, .pairs = nic->queues, .split_ring = nic->split_ring, .net = nic->net};
    memcpy(o.mac, nic->mac, 6);
    int r = virtio_net_create(m->pci, -1, &o, m->loop, &v, e);
    if (r) return r;
    d->dev = v;
    d->destroy = destroy_virtio;
    d->net = virtio_net_backend(v);
    return 0;
}

static void destroy_e1000(void *dev)
{
    e1000_destroy(dev);
}

static int add_e1000(struct machine *m, const struct machine_nic *nic, struct machine_device *d, struct nerr *e)
{
    struct e1000 *v;
    struct e1000_options o = {.name = d->id, .net = nic->net};
    memcpy(o.mac, nic->mac, 6);
    int r = e1000_create(m->pci, -1, &o, m->loop, &v, e);
    if (r) return r;
    d->dev = v;
    d->destroy = destroy_e1000;
    d->net = e1000_backend(v);
    return 0;
}

/* Two cards of one address can't be told apart, by a guest's names for them least of all. */
static int check_macs(const struct machine_config *c, struct nerr *e)
{
    static const uint8_t none[6];
    for (unsigned i = 0; i < c->nnics; i++)
        for (unsigned k = 0; k < i && memcmp(c->nics[i].mac, none, 6) != 0; k++)
            if (memcmp(c->nics[i].mac, c->nics[k].mac, 6) == 0) {
                const uint8_t *a = c->nics[i].mac;
                return nerr_set(
                    e, -EINVAL,
                    "--net: two NICs have the address %02x:%02x:%02x:%02x:%02x:%02x; give each its own mac=", a[0],
                    a[1], a[2], a[3], a[4], a[5]);
            }
    return 0;
}

static int add_nic(struct machine *m, const struct machine_nic *given, unsigned number, struct nerr *e)
{
    struct machine_nic nic = *given;
    static const uint8_t none[6];
    if (!nic.id[0]) snprintf(nic.id, sizeof nic.id, "net%u", number);
    if (!memcmp(nic.mac, none, 6)) make_mac(m->name, number, nic.mac);
    /* In the list first: its name must stay where it is. */
    struct machine_device *d = machine_device_claim(m, "--net", nic.id, e);
    if (!d) return -EEXIST;
    return nic.model == MACHINE_NIC_E1000 ? add_e1000(m, &nic, d, e) : add_virtio(m, &nic, d, e);
}

int machine_nics_create(struct machine *m, const struct machine_config *c, struct nerr *e)
{
    int r = check_macs(c, e);
    for (unsigned i = 0; i < c->nnics && !r; i++) r = add_nic(m, &c->nics[i], i, e);
    return r;
}
