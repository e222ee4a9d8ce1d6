/* Which instruction sets are built in, and which of them this CPU can run. The only file that names more than one. */
#include "dispatch.h"

#include <stdbool.h>

#define TABLES(isa) extern const struct fsm_kernels fsm_kernels_##isa##_f32, fsm_kernels_##isa##_f64

static bool always(void) { return true; }

#if defined(FSM_HAVE_avx2)
#include <cpuid.h>
TABLES(avx2);
static bool cpu_has_f16c(void) { /* not among the names that clang knows */
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
static bool cpu_has_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c();
}
#endif
#if defined(FSM_HAVE_avx512)
TABLES(avx512);
static bool cpu_has_avx512(void) {
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#if defined(FSM_HAVE_neon)
TABLES(neon);
#endif
TABLES(scalar);

struct fsm_isa {
    const char *name;
    bool (*usable)(void);
    const struct fsm_kernels *kernels[2]; /* of FSM_F32 and FSM_F64 */
};

/* Best first. */
/* clang-format off */
#define ISA(isa, usable) {#isa, usable, {&fsm_kernels_##isa##_f32, &fsm_kernels_##isa##_f64}}
static const struct fsm_isa isas[] = {
#if defined(FSM_HAVE_avx512)
    ISA(avx512, cpu_has_avx512),
#endif
#if defined(FSM_HAVE_avx2)
    ISA(avx2, cpu_has_avx2),
#endif
#if defined(FSM_HAVE_neon)
    ISA(neon, always),
#endif
    ISA(scalar, always),
};
/* clang-format on */

enum { COUNT = sizeof isas / sizeof *isas };

const fsm_isa *fsm_isa_usable(size_t i) {
    for (size_t k = 0; k < COUNT; k++)
        if (isas[k].usable() && i-- == 0) return &isas[k];
    return NULL;
}

const char *fsm_isa_built(size_t i) { return i < COUNT ? isas[i].name : NULL; }

const char *fsm_isa_name(const fsm_isa *isa) { return isa->name; }

const struct fsm_kernels *fsm_kernels_of(const fsm_isa *isa, fsm_type type) {
    static const fsm_isa *_Atomic best; /* every thread that finds it unset finds the same one */
    if (!isa && !(isa = best)) best = isa = fsm_isa_usable(0);
    return isa->kernels[type == FSM_F64 ? FSM_F64 : FSM_F32];
}
