/* Masked memory operands: how mask bits map to bytes in memory. */
#include "vmm/engine/soft/decode.h"

/* Instructions of these exception types read all of their memory operand, whatever the mask says (SDM vol. 2 2.8). */
static bool no_suppression(ZydisExceptionClass c)
{
    switch (c) {
    case ZYDIS_EXCEPTION_CLASS_E1NF:
    case ZYDIS_EXCEPTION_CLASS_E2NF:
    case ZYDIS_EXCEPTION_CLASS_E3NF:
    case ZYDIS_EXCEPTION_CLASS_E4NF:
    case ZYDIS_EXCEPTION_CLASS_E5NF:
    case ZYDIS_EXCEPTION_CLASS_E6NF:
    case ZYDIS_EXCEPTION_CLASS_E9NF:
    case ZYDIS_EXCEPTION_CLASS_E10NF:
    case ZYDIS_EXCEPTION_CLASS_E11NF: return true;
    default: return false;
    }
}

static bool is_packed(uint16_t mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_VPCOMPRESSB:
    case ZYDIS_MNEMONIC_VPCOMPRESSW:
    case ZYDIS_MNEMONIC_VPCOMPRESSD:
    case ZYDIS_MNEMONIC_VPCOMPRESSQ:
    case ZYDIS_MNEMONIC_VCOMPRESSPS:
    case ZYDIS_MNEMONIC_VCOMPRESSPD:
    case ZYDIS_MNEMONIC_VPEXPANDB:
    case ZYDIS_MNEMONIC_VPEXPANDW:
    case ZYDIS_MNEMONIC_VPEXPANDD:
    case ZYDIS_MNEMONIC_VPEXPANDQ:
    case ZYDIS_MNEMONIC_VEXPANDPS:
    case ZYDIS_MNEMONIC_VEXPANDPD: return true;
    default: return false;
    }
}

static unsigned broadcast_lanes(ZydisBroadcastMode m)
{
    switch (m) {
    case ZYDIS_BROADCAST_MODE_1_TO_2: return 2;
    case ZYDIS_BROADCAST_MODE_1_TO_4:
    case ZYDIS_BROADCAST_MODE_2_TO_4: return 4;
    case ZYDIS_BROADCAST_MODE_1_TO_8:
    case ZYDIS_BROADCAST_MODE_2_TO_8:
    case ZYDIS_BROADCAST_MODE_4_TO_8: return 8;
    case ZYDIS_BROADCAST_MODE_1_TO_16:
    case ZYDIS_BROADCAST_MODE_2_TO_16:
    case ZYDIS_BROADCAST_MODE_4_TO_16:
    case ZYDIS_BROADCAST_MODE_8_TO_16: return 16;
    case ZYDIS_BROADCAST_MODE_1_TO_32: return 32;
    case ZYDIS_BROADCAST_MODE_1_TO_64: return 64;
    default: return 0;
    }
}

/* Where Zydis tells the size of what is multiplied rather than that of what a mask bit stands for. */
static unsigned unit_of(uint16_t mnemonic, const ZydisDecodedOperand *mem)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_VPDPBUSD:
    case ZYDIS_MNEMONIC_VPDPBUSDS:
    case ZYDIS_MNEMONIC_VPDPWSSD:
    case ZYDIS_MNEMONIC_VPDPWSSDS:
    case ZYDIS_MNEMONIC_VDPBF16PS: return 4;
    case ZYDIS_MNEMONIC_VPSHUFBITQMB: return 1;
    default: return mem->element_size / 8u;
    }
}

static void opmask(struct xinsn *x, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *mem)
{
    bool whole = no_suppression(z->meta.exception_class) || z->mnemonic == ZYDIS_MNEMONIC_VCVTNE2PS2BF16 ||
                 z->mnemonic == ZYDIS_MNEMONIC_VDBPSADBW || z->mnemonic == ZYDIS_MNEMONIC_VGF2P8AFFINEQB ||
                 z->mnemonic == ZYDIS_MNEMONIC_VGF2P8AFFINEINVQB;
    if (whole && !x->mem_write) return; /* as good as without a mask */
    x->masked = true;
    x->mask = is_packed((uint16_t)z->mnemonic) ? MASK_PACKED : MASK_LANES;
    x->mask_whole = whole;
    x->mask_reg = (uint8_t)(z->avx.mask.reg - ZYDIS_REGISTER_K0);
    x->mask_unit = (uint8_t)unit_of((uint16_t)z->mnemonic, mem);
    unsigned lanes = broadcast_lanes(z->avx.broadcast.mode);
    x->mask_bits = (uint8_t)(lanes ? lanes : x->mask_unit ? x->mem_size / x->mask_unit : 1);
}

/* VMASKMOVxx, VPMASKMOVx: the mask is the second operand of loads and stores alike. */
static void vector_mask(struct xinsn *x, const ZydisDecodedOperand *ops, unsigned unit)
{
    x->masked = true;
    x->mask = MASK_VECTOR;
    x->mask_reg = (uint8_t)ZydisRegisterGetId(ops[1].reg.value);
    x->mask_unit = (uint8_t)unit;
    x->mask_bits = (uint8_t)(x->mem_size / unit);
}

void soft_find_mask(struct xinsn *x, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops)
{
    x->masked = false;
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VPMASKMOVD: vector_mask(x, ops, 4); return;
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ: vector_mask(x, ops, 8); return;
    default: break;
    }
    if (z->encoding != ZYDIS_INSTRUCTION_ENCODING_EVEX || z->avx.mask.reg <= ZYDIS_REGISTER_K0 ||
        z->avx.mask.reg > ZYDIS_REGISTER_K7)
        return;
    for (unsigned i = 0; i < z->operand_count_visible; i++)
        if (ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY && ops[i].mem.type == ZYDIS_MEMOP_TYPE_MEM) opmask(x, z, &ops[i]);
}
