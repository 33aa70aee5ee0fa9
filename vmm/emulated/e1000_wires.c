/* What the e1000's driver reaches by wires behind registers: the EEPROM (5.3) with the Ethernet address, and the PHY (chapter 8 of the
 * manual; registers as IEEE 802.3, clause 22, and Marvell's 88E1011 have them). */
#include <string.h>

#include "vmm/emulated/e1000_internal.h"

#define EECD_SK 0x01u
#define EECD_CS 0x02u
#define EECD_DI 0x04u
#define EECD_DO 0x08u
#define EECD_FWE 0x30u
#define EECD_REQ 0x40u
#define EECD_GNT 0x80u
#define EECD_PRESENT 0x100u

#define EERD_START 0x01u
#define EERD_DONE 0x10u

#define EEPROM_READ 2 /* the two opcode bits */
#define EEPROM_ADDRESS_BITS 6
#define EEPROM_SUM 0xbaba
/* Words that say something (5.6); 0 to 2 are the Ethernet address. */
enum eeprom_word {
    EEPROM_CONTROL1 = 0x0a,
    EEPROM_SUBSYSTEM,
    EEPROM_SUBSYSTEM_VENDOR,
    EEPROM_DEVICE,
    EEPROM_VENDOR,
    EEPROM_CONTROL2,
};

#define MDIC_WRITE 1u
#define MDIC_READ 2u
#define MDIC_READY 0x10000000u
#define MDIC_INTERRUPT 0x20000000u
#define MDIC_ERROR 0x40000000u
#define PHY_ADDRESS 1u

enum phy_reg {
    PHY_CONTROL,
    PHY_STATUS,
    PHY_ID1,
    PHY_ID2,
    PHY_ADVERTISE,
    PHY_PARTNER,
    PHY_GIGABIT_CONTROL = 9,
    PHY_GIGABIT_STATUS,
    PHY_EXTENDED_STATUS = 15,
    PHY_M88_CONTROL,
    PHY_M88_STATUS,
};

#define PHY_CONTROL_RESET 0x8000u
#define PHY_CONTROL_RESTART 0x0200u
#define PHY_STATUS_LINK 0x0024u /* link, and negotiation complete */
#define M88_STATUS_LINK 0xac00u /* 1000 Mb/s, full duplex, resolved, link */

/* ---- EEPROM ---- */

void e1000_eeprom_init(struct e1000 *d)
{
    uint16_t *w = d->eeprom.word, sum = 0;
    memset(w, 0, sizeof d->eeprom.word);
    for (int i = 0; i < 3; i++) w[i] = (uint16_t)(d->mac[2 * i] | d->mac[2 * i + 1] << 8);
    w[EEPROM_CONTROL1] = 0x4408; /* signature, subsystem IDs from here */
    w[EEPROM_SUBSYSTEM] = 0x001e;
    w[EEPROM_SUBSYSTEM_VENDOR] = 0x8086;
    w[EEPROM_DEVICE] = 0x100e;
    w[EEPROM_VENDOR] = 0x8086;
    w[EEPROM_CONTROL2] = 0x0040; /* it negotiates by itself; no pause frames (bits 12 and 13) */
    for (int i = 0; i < EEPROM_WORDS - 1; i++) sum = (uint16_t)(sum + w[i]);
    w[EEPROM_WORDS - 1] = (uint16_t)(EEPROM_SUM - sum);
}

/* A rising edge of the clock while the chip is selected: a bit goes in, and one comes out. Start bit, two bits of opcode, six of
 * address; then a zero, and sixteen bits of data, most significant first, on the clocks that follow. */
static void eeprom_clock(struct e1000_eeprom *p, bool in)
{
    if (p->left) {
        p->left--;
        p->data_out = p->out >> p->left & 1;
        return;
    }
    if (p->bits == 0) {
        p->bits = in; /* the start bit */
        p->in = 0;
        return;
    }
    p->in = p->in << 1 | in;
    if (++p->bits < 1 + 2 + EEPROM_ADDRESS_BITS) return;
    if (p->in >> EEPROM_ADDRESS_BITS == EEPROM_READ) {
        p->out = p->word[p->in & (EEPROM_WORDS - 1)];
        p->left = 16;
    }
    p->data_out = false;
    p->bits = 0; /* writes are ignored */
}

void e1000_eecd_write(struct e1000 *d, uint32_t v)
{
    pthread_mutex_lock(&d->wire_lock);
    struct e1000_eeprom *p = &d->eeprom;
    uint32_t old = e1000_get(d, E1000_EECD);
    if (!(v & EECD_CS)) {
        p->bits = 0;
        p->left = 0;
        p->data_out = true; /* "ready" for those who wait for a write to end */
    } else if (v & EECD_SK && !(old & EECD_SK)) {
        eeprom_clock(p, v & EECD_DI);
    }
    e1000_put(d, E1000_EECD, v & (EECD_SK | EECD_CS | EECD_DI | EECD_FWE | EECD_REQ));
    pthread_mutex_unlock(&d->wire_lock);
}

uint32_t e1000_eecd_read(struct e1000 *d)
{
    pthread_mutex_lock(&d->wire_lock);
    uint32_t v = e1000_get(d, E1000_EECD) | EECD_PRESENT;
    if (v & EECD_REQ) v |= EECD_GNT;
    if (d->eeprom.data_out) v |= EECD_DO;
    pthread_mutex_unlock(&d->wire_lock);
    return v;
}

void e1000_eerd_write(struct e1000 *d, uint32_t v)
{
    if (!(v & EERD_START)) return;
    pthread_mutex_lock(&d->wire_lock);
    uint32_t address = v >> 8 & 0xff;
    uint32_t data = address < EEPROM_WORDS ? d->eeprom.word[address] : 0;
    e1000_put(d, E1000_EERD, data << 16 | address << 8 | EERD_DONE);
    pthread_mutex_unlock(&d->wire_lock);
}

/* ---- PHY ---- */

static void phy_link(struct e1000 *d, bool up)
{
    d->phy[PHY_STATUS] = (uint16_t)((d->phy[PHY_STATUS] & ~PHY_STATUS_LINK) | (up ? PHY_STATUS_LINK : 0));
    d->phy[PHY_M88_STATUS] = up ? M88_STATUS_LINK : 0;
    d->phy[PHY_PARTNER] = up ? 0x41e1 : 0;
    d->phy[PHY_GIGABIT_STATUS] = up ? 0x3c00 : 0;
}

static void phy_reset(struct e1000 *d)
{
    memset(d->phy, 0, sizeof d->phy);
    d->phy[PHY_CONTROL] = 0x1140; /* negotiation on, full duplex, 1000 Mb/s */
    d->phy[PHY_STATUS] = 0x7949;
    d->phy[PHY_ID1] = 0x0141;
    d->phy[PHY_ID2] = 0x0c20;
    d->phy[PHY_ADVERTISE] = 0x0de1;
    d->phy[PHY_GIGABIT_CONTROL] = 0x0e00;
    d->phy[PHY_EXTENDED_STATUS] = 0x3000;
    d->phy[PHY_M88_CONTROL] = 0x0360;
    phy_link(d, atomic_load(&d->link));
}

static void phy_write(struct e1000 *d, unsigned reg, uint16_t v)
{
    switch (reg) {
    case PHY_CONTROL:
        if (v & PHY_CONTROL_RESET)
            phy_reset(d);
        else
            d->phy[PHY_CONTROL] = (uint16_t)(v & ~PHY_CONTROL_RESTART); /* negotiated at once */
        break;
    case PHY_STATUS:
    case PHY_ID1:
    case PHY_ID2:
    case PHY_PARTNER:
    case PHY_GIGABIT_STATUS:
    case PHY_EXTENDED_STATUS:
    case PHY_M88_STATUS: break; /* read-only */
    default: d->phy[reg] = v; break;
    }
}

void e1000_phy_link(struct e1000 *d, bool up)
{
    pthread_mutex_lock(&d->wire_lock);
    phy_link(d, up);
    pthread_mutex_unlock(&d->wire_lock);
}

void e1000_mdic_write(struct e1000 *d, uint32_t v)
{
    unsigned reg = v >> 16 & 31, phy = v >> 21 & 31, op = v >> 26 & 3;
    pthread_mutex_lock(&d->wire_lock);
    v &= ~(MDIC_ERROR | MDIC_READY);
    if (phy != PHY_ADDRESS)
        v |= MDIC_ERROR;
    else if (op == MDIC_READ)
        v = (v & 0xffff0000) | d->phy[reg];
    else if (op == MDIC_WRITE)
        phy_write(d, reg, (uint16_t)v);
    e1000_put(d, E1000_MDIC, v | MDIC_READY);
    pthread_mutex_unlock(&d->wire_lock);
    if (v & MDIC_INTERRUPT) e1000_raise(d, CAUSE_MDAC);
}

void e1000_wires_reset(struct e1000 *d)
{
    pthread_mutex_lock(&d->wire_lock);
    phy_reset(d);
    d->eeprom.bits = 0;
    d->eeprom.left = 0;
    d->eeprom.data_out = true;
    pthread_mutex_unlock(&d->wire_lock);
}
