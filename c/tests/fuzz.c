/* Calls of the public interface made from bytes, with everything that a caller may pass, checked without knowing any result:
 *   - memory is exactly as large as what a call may touch, so that a sanitizer sees any step beside it; what is read is the same
 *     afterwards, and so is what lies between results, and all of it where the call is refused;
 *   - every row has the bits that it has alone, contiguous, on one thread;
 *   - results keep to what their rows allow: NaN where it belongs and nowhere else, chances in [0, 1] that add up to 1, ...
 * Built with -fsanitize=fuzzer and FSM_LIBFUZZER it is a target of libFuzzer; else a program: `fuzz COUNT [SEED]`. The ISA is
 * the one that the environment names as FSM_FUZZ_ISA, the best by default. */
#include <float.h>
#include <inttypes.h>
#include <stdio.h>

#include "fuzz_input.h"

/* ---- A call ---- */

enum name { X, Y, G, TEMPERATURE, BIAS, WHERE, SINK, LSE, TARGET, SCALE, LOG_PROB, NAMES };

struct call {
    enum { PLAIN, RUN, MODIFIED, VJP } function;
    const fsm_isa *isa;
    fsm_op op;
    fsm_type type;
    size_t outer, n, inner;
    unsigned threads;
    bool dense;
    struct array arrays[NAMES];
    enum name result, source; /* Y, or what it is written over; what gives the rows */
    double empty;
    float empty_f32;
    fsm_modifiers modifiers;
};

static bool is_reduction(fsm_op op) { return op == FSM_LOGSUMEXP || op == FSM_LOGMEANEXP || op == FSM_LOG_PROB; }
static bool has_target(fsm_op op) { return op == FSM_LOG_PROB || op == FSM_LOSS_GRAD; }
static bool is_known(const struct call *c) {
    return (unsigned)c->op < FSM_OP_COUNT && (unsigned)c->type < FSM_TYPE_COUNT;
}
/* The type that memory is laid out for, also where the call's does not exist. */
static fsm_type type_of(const struct call *c) { return is_known(c) ? c->type : FSM_F64; }
static bool is_there(const struct call *c, enum name name) { return c->arrays[name].memory; }

/* Asked once: it takes longer than most calls where cpuid traps. */
static const fsm_isa *chosen_isa(void) {
    static const fsm_isa *chosen;
    const char *name = getenv("FSM_FUZZ_ISA");
    for (size_t i = 0; !chosen && fsm_isa_usable(i); i++)
        if (!name || !strcmp(name, fsm_isa_name(fsm_isa_usable(i)))) chosen = fsm_isa_usable(i);
    if (chosen) return chosen;
    fprintf(stderr, "fuzz: FSM_FUZZ_ISA=%s is not usable here\n", name);
    _Exit(77); /* not exit, of which libFuzzer makes a finding */
}

static bool is_best(const fsm_isa *isa) {
    static const fsm_isa *best;
    if (!best) best = fsm_isa_usable(0);
    return isa == best;
}

/* ---- Bytes -> call ---- */

static void choose_sizes(struct input *in, struct call *c) {
    static const unsigned most[16] = {3, 8, 8, 17, 17, 17, 17, 17, 17, 35, 35, 35, 70, 70, 140, 0};
    const unsigned limit = most[choose(in, 16)];
    c->n = limit ? choose(in, limit + 1) : choose(in, one_in(in, 12) ? 4100 : 300);
    if (!limit && one_in(in, 48)) c->n = (one_in(in, 3) ? 16384 : 8192) + choose(in, 70) - 16;
    const size_t room = c->n > 600 ? 3 : c->n > 17 ? 24 : 40;
    c->outer = choose(in, one_in(in, 24) ? (unsigned)room + 1 : 4);
    c->inner = one_in(in, 3) ? choose(in, one_in(in, 8) ? (unsigned)room + 1 : 5) : 1;
    if (c->n <= 20 && one_in(in, 200)) *(one_in(in, 2) ? &c->outer : &c->inner) = choose(in, 600);
    if (!c->outer && one_in(in, 4)) c->n = c->inner = (size_t)1 << 40; /* no elements, whatever the others say */
}

static struct array *add(struct input *in, struct call *c, enum name name, size_t size, bool a_row, bool written) {
    struct array *a = &c->arrays[name];
    *a = (struct array){.size = size, .counts = {c->outer, a_row ? 1 : c->n, c->inner}};
    lay_out(in, a, written);
    if (c->dense && (name == X || name == Y || name == G)) lay_out_densely(a);
    allocate(in, a);
    return a;
}

static size_t elements_in(const struct array *a) { return a->bytes / a->size; }

static struct array *add_numbers(struct input *in, struct call *c, enum name name, fsm_type type, bool a_row,
                                 bool positive) {
    struct array *a = add(in, c, name, formats[type].size, a_row, false);
    fill(in, type, a->memory, elements_in(a), positive);
    return a;
}

/* Where results go: bytes that show which of them were written. */
static struct array *add_results(struct input *in, struct call *c, enum name name, fsm_type type, bool a_row) {
    struct array *a = add(in, c, name, formats[type].size, a_row, true);
    memset(a->memory, 0xa5, a->bytes);
    return a;
}

static void take_strides(ptrdiff_t *to, const struct array *a, bool a_row) {
    to[0] = a->strides[0];
    if (!a_row) to[1] = a->strides[1];
    to[a_row ? 1 : 2] = a->strides[2];
}

static const void *add_modifier(struct input *in, struct call *c, enum name name, ptrdiff_t *strides) {
    const fsm_type type = name == BIAS ? c->modifiers.bias_type : computed(type_of(c));
    const struct array *a = add_numbers(in, c, name, type, name != BIAS, name == TEMPERATURE);
    take_strides(strides, a, name != BIAS);
    return a->first;
}

static void add_target(struct input *in, struct call *c) {
    fsm_modifiers *m = &c->modifiers;
    struct array *a = add(in, c, TARGET, sizeof(int64_t), true, false);
    const bool outside = one_in(in, 16);
    m->ignored = one_in(in, 4) ? (int64_t)choose(in, (unsigned)(c->n & 0xffff) + 1) : -100;
    for (size_t i = 0; i < elements_in(a); i++) {
        int64_t target = c->n ? (int64_t)(draw(in) % c->n) : m->ignored;
        if (draw(in) % 8 == 0) target = m->ignored;
        if (outside && draw(in) % 4 == 0) target = draw(in) % 2 ? (int64_t)c->n : (int64_t)draw(in);
        memcpy(a->memory + i * sizeof target, &target, sizeof target);
    }
    m->target = (const void *)a->first;
    take_strides(m->target_strides, a, true);
}

static void add_mask(struct input *in, struct call *c) {
    struct array *a = add(in, c, WHERE, 1, false, false);
    const uint64_t often = draw(in) % 5, ends = draw(in) % 3 ? 0 : draw(in) % (a->bytes + 1);
    for (size_t i = 0; i < a->bytes; i++) { /* any byte but 0 is true */
        const uint64_t r = draw(in);
        a->memory[i] = (char)(i < ends || r % 4 < often ? 0 : 1 + (r >> 32) % 255);
    }
    c->modifiers.where = (const unsigned char *)a->first;
    take_strides(c->modifiers.where_strides, a, false);
}

static void *add_output(struct input *in, struct call *c, enum name name, ptrdiff_t *strides) {
    struct array *a = add_results(in, c, name, computed(type_of(c)), true);
    take_strides(strides, a, true);
    return a->first;
}

static double any_number(struct input *in, fsm_type type) {
    uint64_t bits = number_of_kind("oooowht?"[choose(in, 8)], draw(in), type);
    return value_at(&bits, type);
}

static void add_modifiers(struct input *in, struct call *c) {
    fsm_modifiers *m = &c->modifiers;
    m->bias_type = one_in(in, 2) ? computed(type_of(c)) : type_of(c);
    if (one_in(in, 4)) m->temperature = add_modifier(in, c, TEMPERATURE, m->temperature_strides);
    if (one_in(in, 8)) m->softcap = fabs(any_number(in, computed(type_of(c))));
    if (one_in(in, 3)) m->bias = add_modifier(in, c, BIAS, m->bias_strides);
    if (one_in(in, 3)) add_mask(in, c);
    if (one_in(in, 5)) m->sink = add_modifier(in, c, SINK, m->sink_strides);
    if (one_in(in, 3)) m->lse = add_output(in, c, LSE, m->lse_strides);
    if (one_in(in, has_target(c->op) ? 32 : 4)) {
        c->empty = any_number(in, FSM_F32);
        c->empty_f32 = (float)c->empty;
        m->empty = computed(type_of(c)) == FSM_F64 ? (const void *)&c->empty : &c->empty_f32;
    }
    if (!has_target(c->op) || one_in(in, 32)) return;
    add_target(in, c);
    if (c->op == FSM_LOG_PROB) return;
    if (one_in(in, 2)) m->scale = add_modifier(in, c, SCALE, m->scale_strides);
    if (one_in(in, 3)) m->lse_scale = any_number(in, FSM_F32);
    if (one_in(in, 2)) m->log_prob = add_output(in, c, LOG_PROB, m->log_prob_strides);
}

static fsm_op choose_op(struct input *in, const struct call *c) {
    static const int invalid[] = {FSM_OP_COUNT, -1, 1000, INT32_MIN};
    if (one_in(in, 64)) return (fsm_op)invalid[choose(in, 4)];
    if (c->function == PLAIN) return (fsm_op)choose(in, 3);
    if (c->function == VJP && !one_in(in, 32)) return (fsm_op)choose(in, 2);
    return (fsm_op)choose(in, FSM_OP_COUNT);
}

static void choose_call(struct input *in, struct call *c) {
    static const unsigned char functions[8] = {RUN, RUN, RUN, MODIFIED, MODIFIED, MODIFIED, VJP, PLAIN};
    static const int invalid[] = {FSM_TYPE_COUNT, -1, 77};
    c->function = functions[choose(in, 8)];
    c->op = choose_op(in, c);
    c->type = (fsm_type)choose(in, c->function == PLAIN ? 2 : FSM_TYPE_COUNT);
    if (one_in(in, 128)) c->type = (fsm_type)invalid[choose(in, 3)];
    if (c->function == PLAIN && !is_known(c)) c->function = RUN;
    c->isa = chosen_isa();
    if (c->function == PLAIN) c->isa = NULL; /* they have no other */
    if (is_best(c->isa) && one_in(in, 4)) c->isa = NULL;
    c->threads = one_in(in, 250) ? 1 + choose(in, 3) : choose(in, 2);
    choose_sizes(in, c);
    if (c->function == PLAIN) c->inner = 1;
    c->dense = c->function == PLAIN || one_in(in, 3);
}

static void choose_arrays(struct input *in, struct call *c) {
    const fsm_type type = type_of(c);
    const bool one = is_reduction(c->op), vjp = c->function == VJP, in_place = !one && one_in(in, 4);
    const bool over_g = vjp && in_place && one_in(in, 2);
    c->source = X;
    c->result = over_g ? G : in_place ? X : Y;
    add(in, c, X, formats[type].size, false, c->result == X);
    fill(in, type, c->arrays[X].memory, elements_in(&c->arrays[X]), false);
    if (vjp) {
        add(in, c, G, formats[type].size, false, c->result == G);
        fill(in, type, c->arrays[G].memory, elements_in(&c->arrays[G]), false);
    }
    if (!in_place) add_results(in, c, Y, type, one && !vjp);
    if (c->function == MODIFIED) add_modifiers(in, c);
    for (int i = 0; i < NAMES; i++)
        if (is_there(c, i)) keep_copy(&c->arrays[i]);
}

/* ---- The call itself ---- */

static fsm_status run_plain(const struct call *c, const void *x, void *y) {
    static void (*const f32[])(const float *, float *, size_t, size_t) = {fsm_softmax_f32, fsm_log_softmax_f32,
                                                                          fsm_logsumexp_f32};
    static void (*const f64[])(const double *, double *, size_t, size_t) = {fsm_softmax_f64, fsm_log_softmax_f64,
                                                                            fsm_logsumexp_f64};
    if (c->type == FSM_F32)
        f32[c->op](x, y, c->outer, c->n);
    else
        f64[c->op](x, y, c->outer, c->n);
    return FSM_OK;
}

static fsm_status run(const struct call *c) {
    const struct array *x = &c->arrays[c->source], *y = &c->arrays[c->result], *g = &c->arrays[G];
    ptrdiff_t strides[9], *next = strides;
    if (c->function == VJP) take_strides(next, g, false), next += 3;
    take_strides(next, x, false);
    take_strides(next + 3, y, false);
    const ptrdiff_t *given = c->dense ? NULL : strides;
    switch (c->function) {
        case PLAIN:
            return run_plain(c, x->first, y->first);
        case VJP:
            return fsm_vjp(c->isa, c->op, c->type, g->first, x->first, y->first, c->outer, c->n, c->inner, given,
                           c->threads);
        case RUN:
            return fsm_run(c->isa, c->op, c->type, x->first, y->first, c->outer, c->n, c->inner, given, c->threads);
        default:
            return fsm_run_modified(c->isa, c->op, c->type, x->first, y->first, c->outer, c->n, c->inner, given,
                                    c->threads, &c->modifiers);
    }
}

#include "fuzz_check.h"

/* ---- All of it ---- */

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    struct input in = input_of(bytes, size);
    struct call c = {0};
    choose_call(&in, &c);
    choose_arrays(&in, &c);
    check(&c, run(&c));
    for (int i = 0; i < NAMES; i++) {
        free(c.arrays[i].memory);
        free(c.arrays[i].copy);
    }
    return 0;
}

#ifndef FSM_LIBFUZZER
int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "usage: fuzz COUNT [SEED]\n"), 2;
    const uint64_t count = strtoull(argv[1], NULL, 0), seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 0;
    const char *name = fsm_isa_name(chosen_isa());
    for (uint64_t i = 0; i < count; i++) {
        uint8_t bytes[8];
        for (int k = 0; k < 8; k++) bytes[k] = (uint8_t)((seed + i) >> (56 - 8 * k));
        current_seed = seed + i;
        LLVMFuzzerTestOneInput(bytes, sizeof bytes);
    }
    printf("%s: %" PRIu64 " executions\n", name, count);
    return 0;
}
#endif
