/* From an ISA to its kernels. */
#ifndef FSM_DISPATCH_H
#define FSM_DISPATCH_H

#include "kernels.h"

/* The kernels of an ISA (NULL: the best that this CPU can run) for a type. */
const struct fsm_kernels *fsm_kernels_of(const fsm_isa *isa, fsm_type type);

#endif
