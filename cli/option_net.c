#include "cli/option_net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/keyvalue.h"
#include "vmm/backend/net.h"

#define OPTION "--net"

const char cli_net_help[] =
    "  -n, --net KIND[,...]   a network card; once per card (default: none)\n"
    "        user             a private network; connections leave as this user's own (no privilege needed)\n"
    "          hostfwd=tcp|udp:[HOSTADDR]:PORT-[GUESTADDR]:PORT   leads a host port into the guest; repeatable\n"
    "          restrict=on    the guest reaches nothing outside; hostfwd still works\n"
    "          net=ADDR/BITS  (10.0.2.0/24), dns=ADDR, hostname=NAME, domain=NAME, ipv6=off\n"
    "        tap=NAME         a tap interface of this host\n"
    "        none             a card with its cable out\n"
    "      and for each:  model=virtio|e1000  mac=52:54:00:..  mtu=N  queues=N  packed=off  id=NAME\n"
    "        avg_in=, peak_in=, avg_out=, peak_out= bits per second (K, M, G: powers of 1000; in: to the guest)\n"
    "        burst_in=, burst_out= bytes (K, M, G: powers of 1024)\n";

/* ---- values ---- */

static int parse_mac(const struct cli_keyvalue *kv, uint8_t mac[6], struct nerr *e)
{
    unsigned b[6];
    char end;
    const char *v = kv->value ? kv->value : "";
    bool good =
        strlen(v) == 17 && sscanf(v, "%2x:%2x:%2x:%2x:%2x:%2x%c", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &end) == 6;
    for (int i = 0; i < 6 && good; i++) {
        good = strspn(v + i * 3, "0123456789abcdefABCDEF") == 2;
        mac[i] = (uint8_t)b[i];
    }
    if (!good) return nerr_set(e, -EINVAL, OPTION ": mac=%s is no address; give six bytes: 52:54:00:12:34:56", v);
    if (mac[0] & 1)
        return nerr_set(e, -EINVAL, OPTION ": mac=%s is a group address; give an even first byte, such as 52", v);
    if (!(mac[0] | mac[1] | mac[2] | mac[3] | mac[4] | mac[5]))
        return nerr_set(e, -EINVAL, OPTION ": mac=%s is all zeros; leave mac= out to get one", v);
    return 0;
}

static int parse_address(const struct cli_keyvalue *kv, struct in_addr *a, struct nerr *e)
{
    if (kv->value && inet_pton(AF_INET, kv->value, a) == 1 && a->s_addr) return 0;
    return nerr_set(e, -EINVAL, OPTION ": %s=%s is no IPv4 address", kv->key, kv->value ? kv->value : "");
}

static int parse_network(const struct cli_keyvalue *kv, struct net_user_config *u, struct nerr *e)
{
    char text[32] = "";
    const char *slash = kv->value ? strchr(kv->value, '/') : NULL;
    uint64_t bits = 0;
    struct nerr ignored;
    size_t n = slash ? (size_t)(slash - kv->value) : sizeof text;
    if (n < sizeof text) memcpy(text, kv->value, n);
    if (n >= sizeof text || inet_pton(AF_INET, text, &u->network) != 1 || !u->network.s_addr ||
        cli_parse_number(OPTION, slash + 1, 8, 27, &bits, &ignored))
        return nerr_set(e, -EINVAL, OPTION ": net=%s is no network; give ADDR/BITS with 8 to 27 bits: 10.0.2.0/24",
                        kv->value ? kv->value : "");
    u->mask.s_addr = htonl(0xffffffffu << (32 - bits));
    if (u->network.s_addr & ~u->mask.s_addr)
        return nerr_set(e, -EINVAL,
                        OPTION ": net=%s has bits set behind its first %llu; give the network's own address", kv->value,
                        (unsigned long long)bits);
    return 0;
}

/* "[ADDR]:PORT" at *at, up to `end`. */
static bool parse_endpoint(const char *at, const char *end, struct in_addr *a, uint16_t *port)
{
    char text[64];
    uint64_t n;
    struct nerr ignored;
    size_t len = (size_t)(end - at);
    if (len >= sizeof text) return false;
    memcpy(text, at, len);
    text[len] = 0;
    char *colon = strchr(text, ':');
    if (!colon) return false;
    *colon = 0;
    a->s_addr = 0;
    if (text[0] && inet_pton(AF_INET, text, a) != 1) return false;
    if (cli_parse_number(OPTION, colon + 1, 1, 65535, &n, &ignored)) return false;
    *port = (uint16_t)n;
    return true;
}

static int parse_forward(const struct cli_keyvalue *kv, struct net_user_config *u, struct nerr *e)
{
    const char *v = kv->value ? kv->value : "", *dash = strchr(v, '-');
    struct net_forward f = {0};
    if (u->forwards == NET_MAX_FORWARDS)
        return nerr_set(e, -EINVAL, OPTION ": more than %u hostfwd; give a second NIC for the rest", NET_MAX_FORWARDS);
    bool good = dash && (strncmp(v, "tcp:", 4) == 0 || strncmp(v, "udp:", 4) == 0);
    f.udp = v[0] == 'u';
    good = good && parse_endpoint(v + 4, dash, &f.host, &f.host_port) &&
           parse_endpoint(dash + 1, v + strlen(v), &f.guest, &f.guest_port);
    if (!good)
        return nerr_set(e, -EINVAL,
                        OPTION ": hostfwd=%s is no forward; give tcp|udp:[HOSTADDR]:PORT-[GUESTADDR]:PORT, such as "
                               "tcp:127.0.0.1:2222-:22",
                        v);
    u->forward[u->forwards++] = f;
    return 0;
}

static int parse_number(const struct cli_keyvalue *kv, uint64_t min, uint64_t max, unsigned *out, struct nerr *e)
{
    char option[64];
    uint64_t n = 0;
    snprintf(option, sizeof option, OPTION ": %s", kv->key);
    int r = cli_parse_number(option, kv->value ? kv->value : "", min, max, &n, e);
    if (!r) *out = (unsigned)n;
    return r;
}

/* ---- keys ---- */

enum kinds { ANY = 7, USER = 1 << NET_USER, TAP = 1 << NET_TAP };

uint64_t *cli_net_limit(struct net_limits *l, const char *name, unsigned *base)
{
    struct {
        const char *name;
        uint64_t *value;
        unsigned base;
    } limits[] = {{"avg_in", &l->avg_in, 1000},   {"peak_in", &l->peak_in, 1000},   {"burst_in", &l->burst_in, 1024},
                  {"avg_out", &l->avg_out, 1000}, {"peak_out", &l->peak_out, 1000}, {"burst_out", &l->burst_out, 1024}};
    for (unsigned i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        *base = limits[i].base;
        if (strcmp(name, limits[i].name) == 0) return limits[i].value;
    }
    return NULL;
}

static int set_user(struct net_user_config *u, const struct cli_keyvalue *kv, bool *known, struct nerr *e)
{
    bool on = true;
    int r;
    *known = true;
    if (strcmp(kv->key, "hostfwd") == 0) return parse_forward(kv, u, e);
    if (strcmp(kv->key, "restrict") == 0) return cli_keyvalue_bool(OPTION, kv, &u->restricted, e);
    if (strcmp(kv->key, "net") == 0) return parse_network(kv, u, e);
    if (strcmp(kv->key, "dns") == 0) return parse_address(kv, &u->dns, e);
    if (strcmp(kv->key, "hostname") == 0) return cli_keyvalue_text(OPTION, kv, &u->hostname, e);
    if (strcmp(kv->key, "domain") == 0) return cli_keyvalue_text(OPTION, kv, &u->domain, e);
    if (strcmp(kv->key, "ipv6") == 0) {
        r = cli_keyvalue_bool(OPTION, kv, &on, e);
        u->no_ipv6 = !on;
        return r;
    }
    *known = false;
    return 0;
}

static int set_common(struct machine_nic *nic, const struct cli_keyvalue *kv, bool *known, struct nerr *e)
{
    static const char *const models[] = {"virtio", "e1000", NULL};
    unsigned choice = 0;
    int r;
    *known = true;
    if (strcmp(kv->key, "model") == 0) {
        r = cli_keyvalue_choice(OPTION, kv, models, &choice, e);
        nic->model = choice ? MACHINE_NIC_E1000 : MACHINE_NIC_VIRTIO;
        return r;
    }
    if (strcmp(kv->key, "mac") == 0) return parse_mac(kv, nic->mac, e);
    if (strcmp(kv->key, "mtu") == 0) return parse_number(kv, NET_MTU_MIN, NET_MTU_MAX, &nic->net.mtu, e);
    if (strcmp(kv->key, "queues") == 0) return parse_number(kv, 1, MACHINE_NIC_MAX_QUEUES, &nic->queues, e);
    if (strcmp(kv->key, "id") == 0) return cli_keyvalue_name(OPTION, kv, nic->id, sizeof nic->id, e);
    if (strcmp(kv->key, "packed") == 0) {
        bool packed = true;
        r = cli_keyvalue_bool(OPTION, kv, &packed, e);
        nic->split_ring = !packed;
        return r;
    }
    unsigned base;
    uint64_t *limit = cli_net_limit(&nic->net.limits, kv->key, &base);
    *known = limit != NULL;
    return limit ? cli_keyvalue_count(OPTION, kv, base, limit, e) : 0;
}

/* The first item says what the card is wired to. */
static int set_kind(struct machine_nic *nic, const struct cli_keyvalue *kv, struct nerr *e)
{
    struct net_config *n = &nic->net;
    if (strcmp(kv->key, "tap") == 0) {
        n->kind = NET_TAP;
        size_t len = kv->value ? strlen(kv->value) : 0;
        if (!len || len > NET_NAME_MAX || strpbrk(kv->value, "/ %:"))
            return nerr_set(e, -EINVAL, OPTION ": tap=%s is no name of an interface; give 1 to %u characters",
                            kv->value ? kv->value : "", NET_NAME_MAX);
        memcpy(n->tap.name, kv->value, len + 1);
        return 0;
    }
    if (!kv->value && strcmp(kv->key, "user") == 0)
        n->kind = NET_USER;
    else if (!kv->value && strcmp(kv->key, "none") == 0)
        n->kind = NET_NONE;
    else
        return nerr_set(e, -EINVAL, OPTION ": '%s' is no kind of network; begin with user, tap=NAME or none", kv->key);
    return 0;
}

static int set_key(struct machine_nic *nic, const struct cli_keyvalue *kv, struct nerr *e)
{
    bool known = false;
    int r = set_common(nic, kv, &known, e);
    if (known) return r;
    struct net_user_config other = {0};
    bool user = nic->net.kind == NET_USER;
    r = set_user(user ? &nic->net.user : &other, kv, &known, e);
    if (known && !user) return nerr_set(e, -EINVAL, OPTION ": %s= goes with user only", kv->key);
    if (known) return r;
    return nerr_set(e, -EINVAL, OPTION ": unknown item '%s'; see 'nacelle help run'", kv->key);
}

static int check(const struct machine_nic *nic, struct nerr *e)
{
    if (nic->model == MACHINE_NIC_E1000 && nic->net.mtu > NET_MTU_DEFAULT)
        return nerr_set(e, -EINVAL, OPTION ": mtu=%u is too large for model=e1000; give at most %u", nic->net.mtu,
                        NET_MTU_DEFAULT);
    if (nic->model == MACHINE_NIC_E1000 && nic->queues > 1)
        return nerr_set(e, -EINVAL, OPTION ": model=e1000 has one queue; leave queues= out, or use model=virtio");
    struct nerr why;
    int r = net_check_limits(&nic->net.limits, &why);
    return r ? nerr_set(e, r, OPTION ": %s", why.text) : 0;
}

int cli_net_add(struct cli_nics *nics, const char *text, struct nerr *e)
{
    static const char *const repeatable[] = {"hostfwd", NULL};
    struct cli_keyvalues kv;
    if (nics->n == MACHINE_MAX_NICS)
        return nerr_set(e, -EINVAL, OPTION ": more than %d NICs; give fewer", MACHINE_MAX_NICS);
    int r = cli_keyvalues_parse(OPTION, text, &kv, e);
    if (r) return r;
    struct machine_nic *nic = &nics->nic[nics->n];
    *nic = (struct machine_nic){.queues = 1};
    r = cli_keyvalues_unique(OPTION, &kv, repeatable, e);
    if (!r) r = set_kind(nic, &kv.pair[0], e);
    for (unsigned i = 1; i < kv.pairs && !r; i++) r = set_key(nic, &kv.pair[i], e);
    if (!r) r = check(nic, e);
    if (r) {
        cli_keyvalues_free(&kv);
        return r;
    }
    nics->text[nics->n++] = kv.text;
    return 0;
}

void cli_nics_free(struct cli_nics *nics)
{
    for (unsigned i = 0; i < nics->n; i++) free(nics->text[i]);
    nics->n = 0;
}
