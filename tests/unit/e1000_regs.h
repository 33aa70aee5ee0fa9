/* The e1000's registers (chapter 13 of its manual), as a driver has them: by their offsets, written down apart from the device's own list. */
#ifndef NACELLE_TESTS_E1000_REGS_H
#define NACELLE_TESTS_E1000_REGS_H

enum {
    CTRL = 0,
    STATUS = 8,
    EECD = 0x10,
    EERD = 0x14,
    MDIC = 0x20,
    VET = 0x38,
    ICR = 0xc0,
    ITR = 0xc4,
    ICS = 0xc8,
    IMS = 0xd0,
    IMC = 0xd8,
    RCTL = 0x100,
    TCTL = 0x400,
    RDBAL = 0x2800,
    RDLEN = 0x2808,
    RDH = 0x2810,
    RDT = 0x2818,
    TDBAL = 0x3800,
    TDLEN = 0x3808,
    TDH = 0x3810,
    TDT = 0x3818,
    GPRC = 0x4074,
    GPTC = 0x4080,
    RXCSUM = 0x5000,
    MTA = 0x5200,
    RAL = 0x5400,
    RAH = 0x5404,
    VFTA = 0x5600
};

#endif
