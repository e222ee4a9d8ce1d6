/* written by c/fit.py; do not edit */
#ifndef FSM_COEFFICIENTS_H
#define FSM_COEFFICIENTS_H

/* F32 EXP: degree 6, relative approximation error 0.0523 * 2^-24 at -0.309517 (r) */
/* F32 LOG: 4 terms, relative approximation error 0.0004 * 2^-24 at 0.023966 (w) */
#define FSM_F32_LOG2E 0x1.715476p+0f
#define FSM_F32_LN2 0x1.62e43p-1f
#define FSM_F32_LN2_HI 0x1.62e43p-1f
#define FSM_F32_LN2_LO -0x1.05c61p-29f
#define FSM_F32_LN2_HI_NOFMA 0x1.62e4p-1f
#define FSM_F32_LN2_LO_NOFMA 0x1.7f7d1cp-20f
#define FSM_F32_EXP { \
    0x1.fffffcp-2f, \
    0x1.555492p-3f, \
    0x1.5558aap-5f, \
    0x1.12396cp-7f, \
    0x1.6a5238p-10f}
#define FSM_F32_LOG { \
    0x1.555554p-1f, \
    0x1.999c28p-2f, \
    0x1.23d312p-2f, \
    0x1.f161c8p-3f}

/* F64 EXP: degree 11, relative approximation error 0.0331 * 2^-53 at -0.346595 (r) */
/* F64 LOG: 7 terms, relative approximation error 0.0111 * 2^-53 at 0.014604 (w) */
#define FSM_F64_LOG2E 0x1.71547652b82fep+0
#define FSM_F64_LN2 0x1.62e42fefa39efp-1
#define FSM_F64_LN2_HI 0x1.62e42fefa39efp-1
#define FSM_F64_LN2_LO 0x1.abc9e3b39803fp-56
#define FSM_F64_LN2_HI_NOFMA 0x1.62e42fefa4p-1
#define FSM_F64_LN2_LO_NOFMA -0x1.8432a1b0e2634p-43
#define FSM_F64_EXP { \
    0x1.000000000000ap-1, \
    0x1.555555555550cp-3, \
    0x1.5555555550799p-5, \
    0x1.1111111124688p-7, \
    0x1.6c16c18439dbbp-10, \
    0x1.a01a01384f1a2p-13, \
    0x1.a0199a0c1165bp-16, \
    0x1.71df0c45a1dd8p-19, \
    0x1.28ad5ee753aa6p-22, \
    0x1.ada023e8a1effp-26}
#define FSM_F64_LOG { \
    0x1.5555555555592p-1, \
    0x1.999999997ff56p-2, \
    0x1.24924941dc729p-2, \
    0x1.c71c5218e2e31p-3, \
    0x1.74663bee81b33p-3, \
    0x1.39a2030faf78p-3, \
    0x1.2f02b101e836bp-3}

#endif
