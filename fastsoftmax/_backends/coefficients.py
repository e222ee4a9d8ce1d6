# written by c/fit.py; do not edit
"""Constants of the kernels, the same bits as in c/coefficients.h."""

from typing import NamedTuple


class Constants(NamedTuple):
    """Constants of a type; EXP starts at r**2, LOG at s**2."""

    LOG2E: float
    LN2: float
    LN2_HI: float
    LN2_LO: float
    LN2_HI_NOFMA: float
    LN2_LO_NOFMA: float
    EXP: tuple[float, ...]
    LOG: tuple[float, ...]


# F32 EXP: degree 6, relative approximation error 0.0523 * 2^-24 at -0.309517 (r)
# F32 LOG: 4 terms, relative approximation error 0.0004 * 2^-24 at 0.023966 (w)
F32 = Constants(
    LOG2E=float.fromhex("0x1.715476p+0"),
    LN2=float.fromhex("0x1.62e43p-1"),
    LN2_HI=float.fromhex("0x1.62e43p-1"),
    LN2_LO=float.fromhex("-0x1.05c61p-29"),
    LN2_HI_NOFMA=float.fromhex("0x1.62e4p-1"),
    LN2_LO_NOFMA=float.fromhex("0x1.7f7d1cp-20"),
    EXP=(
        float.fromhex("0x1.fffffcp-2"),
        float.fromhex("0x1.555492p-3"),
        float.fromhex("0x1.5558aap-5"),
        float.fromhex("0x1.12396cp-7"),
        float.fromhex("0x1.6a5238p-10"),
    ),
    LOG=(
        float.fromhex("0x1.555554p-1"),
        float.fromhex("0x1.999c28p-2"),
        float.fromhex("0x1.23d312p-2"),
        float.fromhex("0x1.f161c8p-3"),
    ),
)

# F64 EXP: degree 11, relative approximation error 0.0331 * 2^-53 at -0.346595 (r)
# F64 LOG: 7 terms, relative approximation error 0.0111 * 2^-53 at 0.014604 (w)
F64 = Constants(
    LOG2E=float.fromhex("0x1.71547652b82fep+0"),
    LN2=float.fromhex("0x1.62e42fefa39efp-1"),
    LN2_HI=float.fromhex("0x1.62e42fefa39efp-1"),
    LN2_LO=float.fromhex("0x1.abc9e3b39803fp-56"),
    LN2_HI_NOFMA=float.fromhex("0x1.62e42fefa4p-1"),
    LN2_LO_NOFMA=float.fromhex("-0x1.8432a1b0e2634p-43"),
    EXP=(
        float.fromhex("0x1.000000000000ap-1"),
        float.fromhex("0x1.555555555550cp-3"),
        float.fromhex("0x1.5555555550799p-5"),
        float.fromhex("0x1.1111111124688p-7"),
        float.fromhex("0x1.6c16c18439dbbp-10"),
        float.fromhex("0x1.a01a01384f1a2p-13"),
        float.fromhex("0x1.a0199a0c1165bp-16"),
        float.fromhex("0x1.71df0c45a1dd8p-19"),
        float.fromhex("0x1.28ad5ee753aa6p-22"),
        float.fromhex("0x1.ada023e8a1effp-26"),
    ),
    LOG=(
        float.fromhex("0x1.5555555555592p-1"),
        float.fromhex("0x1.999999997ff56p-2"),
        float.fromhex("0x1.24924941dc729p-2"),
        float.fromhex("0x1.c71c5218e2e31p-3"),
        float.fromhex("0x1.74663bee81b33p-3"),
        float.fromhex("0x1.39a2030faf78p-3"),
        float.fromhex("0x1.2f02b101e836bp-3"),
    ),
)
