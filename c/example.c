/* How to embed fastsoftmax: the chance of each class, and the loss of the right one. Exits 0 when both are right. */
#include <math.h>
#include <stdio.h>

#include "fastsoftmax.h"

int main(void) {
    const float logits[2][4] = {{1.0f, 2.0f, 3.0f, -INFINITY}, {1000.0f, 1000.0f, 998.0f, 0.0f}};
    const size_t label[2] = {2, 0};
    float chance[2][4], lse[2];

    fsm_softmax_f32(logits[0], chance[0], 2, 4); /* 2 rows of 4, next to each other */
    fsm_logsumexp_f32(logits[0], lse, 2, 4);

    double loss = 0;
    for (size_t i = 0; i < 2; i++) {
        for (size_t k = 0; k < 4; k++) printf("%8.5f", (double)chance[i][k]);
        printf("   loss %.6f\n", (double)(lse[i] - logits[i][label[i]]));
        loss += (double)(lse[i] - logits[i][label[i]]);
    }

    /* The same along the other axis: a "row" is now a column of 2, and there are 4 next to each other. */
    float down[2][4];
    if (fsm_run(NULL, FSM_SOFTMAX, FSM_F32, logits, down, 1, 2, 4, NULL, 1) != FSM_OK) return 2;
    printf("on %s, down the first column: %g %g\n", fsm_isa_name(fsm_isa_usable(0)), (double)down[0][0],
           (double)down[1][0]);

    const double exact = 0.40760596 + 0.75862368; /* log(1 + e^-1 + e^-2) + log(2 + e^-2) */
    return !(fabs(loss - exact) < 1e-4 && down[1][0] == 1);
}
