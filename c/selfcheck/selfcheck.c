/* Checks the library on this machine: every usable ISA, type and op on a fixed set of rows.
 *
 * Prints a line for each: a digest of all results, the worst error against long double, and ok or why not. Exits 0 when
 * all is well. It checks that
 *   - the errors are within the promised bounds, and NaN, infinities and underflow where they belong;
 *   - threads, strides, working in place and the other rows of an array change no bit, and nothing else is written;
 *   - the half types give the results of float32, rounded once;
 *   - modifiers give the bits of the steps done by hand, on rows and on columns;
 *   - gradients are within 4 ulp of what is subtracted, with the same bits in other layouts, in place, with threads;
 *   - all ISAs with fused multiply-add ("scalar" has none) give the same bits.
 * The rows come from integers by exact operations, so that digests can be compared between machines. */
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastsoftmax.h"

#include "rows.h"
#include "exact.h"
#include "layouts.h"
#include "modified.h"
#include "losses.h"

/* ---- All checks of some rows ---- */

static void check_errors(const struct block *b, const struct exact *want, size_t count, fsm_op op, struct result *r) {
    for (size_t i = 0; i < count; i++) {
        double got = get(b->type, b->y, i);
        long double error = error_ulp(b->type, got, want[i]);
        if (!(error <= r->worst)) r->worst = error;
        if (!(error <= ops[op].bound[b->type]))
            fail(r, "%.5Lg ulp at n = %zu, got %a, exact %La", error, b->n, got, want[i].y);
    }
}

/* The named functions are the general call on the best ISA. */
static void check_named(const struct block *b, fsm_op op, struct result *r) {
    static void (*const f32[])(const float *, float *, size_t, size_t) = {fsm_softmax_f32, fsm_log_softmax_f32,
                                                                          fsm_logsumexp_f32};
    static void (*const f64[])(const double *, double *, size_t, size_t) = {fsm_softmax_f64, fsm_log_softmax_f64,
                                                                            fsm_logsumexp_f64};
    const size_t count = ops[op].one ? b->rows : b->rows * b->n;
    if (b->type == FSM_F32)
        f32[op](b->x, b->out, b->rows, b->n);
    else
        f64[op](b->x, b->out, b->rows, b->n);
    canonical_nans(b->type, b->out, count);
    if (memcmp(b->out, b->y, count * types[b->type].size))
        fail(r, "fsm_%s_%s: other bits", ops[op].name, types[b->type].name);
}

enum { SHARED_OPS = FSM_LOGMEANEXP + 1 }; /* those whose long rows threads share */

static void check_block(enum set set, fsm_type type, size_t rows, size_t n, bool accuracy) {
    const size_t size = types[type].size, most = rows * (3 * n + 8) + 8;
    struct block b = {type,
                      rows,
                      n,
                      get_memory(rows * n * size),
                      get_memory(rows * n * size),
                      get_memory(most * size),
                      get_memory(most * size),
                      get_memory(n * size),
                      n > 65536 ? n % 2 : n + set};
    for (size_t k = 0; k < rows; k++) fill(set, type, (char *)b.x + k * n * size, k, n);

    const size_t enough = n == 2 ? rows : n < 1000 ? 8 : 1, referred = rows < enough ? rows : enough;
    struct row row = {.n = n, .x = get_memory(n * sizeof *row.x), .e = get_memory(n * sizeof *row.e)};
    struct exact *exact[OPS]; /* of the first rows */
    for (size_t op = 0; op < OPS; op++) exact[op] = get_memory(referred * n * sizeof **exact);
    for (size_t k = 0; k < referred && accuracy; k++) {
        for (size_t i = 0; i < n; i++) row.x[i] = (long double)get(type, b.x, k * n + i);
        open_row(&row);
        for (size_t op = 0; op < OPS; op++) compute_exact(&row, (fsm_op)op, exact[op] + k * (ops[op].one ? 1 : n));
    }
    const fsm_isa *isa;
    for (size_t i = 0; (isa = fsm_isa_usable(i)); i++)
        for (size_t op = 0; op < (n > 10000 ? SHARED_OPS : OPS); op++) {
            struct result *r = &results[i][type][op];
            const size_t m = ops[op].one ? 1 : n;
            if (fsm_run(isa, (fsm_op)op, type, b.x, b.y, rows, n, 1, NULL, 1)) fail(r, "an error was returned");
            canonical_nans(type, b.y, rows * m);
            add_to_digest(r, type, b.y, rows * m);
            if (accuracy) check_errors(&b, exact[op], referred * m, (fsm_op)op, r);
            check_other_layout(&b, isa, (fsm_op)op, r);
            const uint64_t before =
                state; /* all see the same modifiers, and later rows do not depend on how many that are */
            if (op < SHARED_OPS && (n + set) % EVERY == 0) check_modified(&b, isa, (fsm_op)op, r);
            if (op == FSM_SOFTMAX && (n > 8192 || (n + set) % 4 == 2)) check_loss(&b, isa, r);
            if (op <= FSM_LOG_SOFTMAX && (n > 8192 || (n + set) % 4 == 1)) check_vjp(&b, isa, (fsm_op)op, accuracy, r);
            state = before;
            for (size_t k = 0; type == FSM_F32 && k < sizeof halves / sizeof *halves; k++)
                check_half(&b, &halves[k], isa, (fsm_op)op, r);
            if (i == 0 && op <= FSM_LOGSUMEXP) check_named(&b, (fsm_op)op, r);
        }
    for (size_t op = 0; op < OPS; op++) free(exact[op]);
    free(row.x), free(row.e), free(b.x), free(b.y), free(b.in), free(b.out), free(b.row);
}

static void check_set(enum set set, fsm_type type, bool accuracy) {
    static const size_t more[] = {127, 128, 129, 130, 131, 255, 256, 257, 1000};
    static const struct {
        enum set set;
        size_t rows, n; /* sums are cut into blocks of 8192; from 65536 threads share a row */
    } longer[] = {{NORMAL_10, 1, 8191}, {NORMAL_10, 1, 8192}, {NORMAL_10, 2, 8193},  {UNIFORM_UP, 1, 20000},
                  {RAMP_UP, 1, 8193},   {SPECIAL, 1, 8193},   {NORMAL_10, 1, 70001}, {SPECIAL, 1, 65544}};
    for (size_t n = 1; n <= 70; n++)
        if (n < 25 || set == NORMAL_10 || (n + set) % 4 == 0)
            check_block(set, type, n == 2 && set == GAP ? 256 : n < 25 && (n + set) % 4 == 0 ? 18 : 2, n, accuracy);
    for (size_t i = 0; i < sizeof more / sizeof *more; i++)
        if (set == NORMAL_10 || (i + set) % 3 == 0) check_block(set, type, 2, more[i], accuracy);
    for (size_t i = 0; i < sizeof longer / sizeof *longer; i++)
        if (longer[i].set == set) check_block(set, type, longer[i].rows, longer[i].n, accuracy);
}

/* ---- Calls without rows, and bad ones ---- */

static bool check_calls(void) {
    float x = 1, y = 2;
    bool good = fsm_run(NULL, FSM_OP_COUNT, FSM_F32, &x, &y, 1, 1, 1, NULL, 1) == FSM_INVALID;
    good &= fsm_run(NULL, FSM_SOFTMAX, FSM_TYPE_COUNT, &x, &y, 1, 1, 1, NULL, 1) == FSM_INVALID;
    good &= fsm_run(NULL, FSM_SOFTMAX, FSM_F32, NULL, &y, 1, 0, 1, NULL, 1) == FSM_OK;
    good &= fsm_run(NULL, FSM_LOGSUMEXP, FSM_F32, NULL, &y, 0, 5, 1, NULL, 1) == FSM_OK && y == 2;
    good &= fsm_run(NULL, FSM_LOGSUMEXP, FSM_F32, NULL, &y, 1, 0, 1, NULL, 1) == FSM_OK && y == -INFINITY;
    good &= fsm_run(NULL, FSM_LOGMEANEXP, FSM_F32, NULL, &y, 1, 0, 1, NULL, 1) == FSM_OK && isnan(y);
    const fsm_modifiers sink = {.sink = &x}, nothing = {0};
    good &= fsm_run_modified(NULL, FSM_SIGMOID, FSM_F32, &x, &y, 1, 1, 1, NULL, 1, &nothing) == FSM_INVALID;
    good &= fsm_run_modified(NULL, FSM_LOGSUMEXP, FSM_F32, NULL, &y, 1, 0, 1, NULL, 1, &sink) == FSM_OK && y == x;
    const int64_t target = 1;
    const fsm_modifiers outside = {.target = &target};
    good &= fsm_run_modified(NULL, FSM_LOG_PROB, FSM_F32, &x, &y, 1, 1, 1, NULL, 1, &outside) == FSM_OUT_OF_RANGE;
    good &= fsm_run_modified(NULL, FSM_LOSS_GRAD, FSM_F32, &x, &y, 1, 1, 1, NULL, 1, &nothing) == FSM_INVALID && y == x;
    good &= fsm_vjp(NULL, FSM_LOGSUMEXP, FSM_F32, &x, &x, &y, 1, 1, 1, NULL, 1) == FSM_INVALID;
    good &= fsm_vjp(NULL, FSM_LOSS_GRAD, FSM_F32, &x, &x, &y, 1, 1, 1, NULL, 1) == FSM_INVALID;
    good &= fsm_vjp(NULL, FSM_SOFTMAX, FSM_TYPE_COUNT, &x, &x, &y, 1, 1, 1, NULL, 1) == FSM_INVALID;
    good &= fsm_vjp(NULL, FSM_SOFTMAX, FSM_F32, NULL, NULL, NULL, 1, 0, 1, NULL, 1) == FSM_OK && y == x;
    bool built = false;
    for (size_t i = 0; fsm_isa_built(i); i++) built |= !strcmp(fsm_isa_built(i), fsm_isa_name(fsm_isa_usable(0)));
    return good && built;
}

int main(void) {
    const bool accuracy = can_compare();
    if (!accuracy) printf("long double is too short here to check errors against: only bits are\n");
    for (size_t set = 0; set < SETS; set++)
        for (size_t type = 0; type < TYPES; type++) {
            state = 1000 * set + type;
            check_set((enum set)set, (fsm_type)type, accuracy);
        }
    int checks = 1, failed = !check_calls();
    printf("calls %s\n", failed ? "FAILED" : "ok");
    const fsm_isa *isa;
    size_t fma = ISAS; /* the first that has it */
    for (size_t i = 0; (isa = fsm_isa_usable(i)); i++) {
        if (fma == ISAS && strcmp(fsm_isa_name(isa), "scalar") != 0) fma = i;
        for (size_t type = 0; type < TYPES; type++)
            for (size_t op = 0; op < OPS; op++) {
                struct result *r = &results[i][type][op];
                if (strcmp(fsm_isa_name(isa), "scalar") != 0 && r->digest != results[fma][type][op].digest)
                    fail(r, "other bits than %s", fsm_isa_name(fsm_isa_usable(fma)));
                printf("%-6s %s %-12s %016" PRIx64 " %7.5Lg ulp  %s%s\n", fsm_isa_name(isa), types[type].name,
                       ops[op].name, r->digest, r->worst, *r->failure ? "FAILED: " : "ok", r->failure);
                checks++;
                failed += *r->failure != 0;
            }
    }
    printf("selfcheck: %d checks, %d failed\n", checks, failed);
    return failed != 0;
}
