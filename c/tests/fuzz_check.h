/* What must hold after a call, whatever it was. Included by fuzz.c alone. */
#ifndef FSM_FUZZ_CHECK_H
#define FSM_FUZZ_CHECK_H

#include <stdarg.h>

static uint64_t current_seed; /* of a program's own inputs */

static void fail(const struct call *c, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "fuzz: ");
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n  function %d, op %d, type %d, %zu x %zu x %zu, %u threads%s%s, seed %" PRIu64 ", arrays:\n",
            (int)c->function, (int)c->op, (int)c->type, c->outer, c->n, c->inner, c->threads,
            c->dense ? ", contiguous" : "", c->result == Y ? "" : ", in place", current_seed);
    for (int i = 0; i < NAMES; i++) {
        const ptrdiff_t *s = c->arrays[i].strides;
        if (is_there(c, i)) fprintf(stderr, "  %d: strides %td %td %td\n", i, s[0], s[1], s[2]);
    }
    abort();
}

/* ---- The status, and memory that is none of a result's ---- */

static bool is_target_outside(const struct call *c) {
    for (size_t o = 0; o < c->outer; o++)
        for (size_t k = 0; k < c->inner; k++) {
            int64_t target = (int64_t)bits_at(element(&c->arrays[TARGET], o, 0, k), sizeof target);
            if (target != c->modifiers.ignored && (target < 0 || (uint64_t)target >= c->n)) return true;
        }
    return false;
}

static fsm_status expected_status(const struct call *c) {
    const fsm_modifiers *m = &c->modifiers;
    const bool modified = c->function == MODIFIED;
    if (!is_known(c)) return FSM_INVALID;
    if (c->function == VJP) return c->op <= FSM_LOG_SOFTMAX ? FSM_OK : FSM_INVALID;
    if (modified && (c->op == FSM_LOGCUMSUMEXP || c->op == FSM_SIGMOID || c->op == FSM_SOFTPLUS)) return FSM_INVALID;
    if (!has_target(c->op)) return FSM_OK;
    if (!modified || !m->target || m->empty) return FSM_INVALID;
    return is_target_outside(c) ? FSM_OUT_OF_RANGE : FSM_OK;
}

/* Comes last: results are put over the copies, and then these must be what is there. */
static void check_memory(const struct call *c, fsm_status status) {
    for (int i = 0; i < NAMES; i++) {
        const struct array *a = &c->arrays[i];
        if (!a->memory) continue;
        const bool written = status == FSM_OK && (i == (int)c->result || i == LSE || i == LOG_PROB);
        for (size_t o = 0; written && a->bytes && o < a->counts[0]; o++)
            for (size_t j = 0; j < a->counts[1]; j++)
                for (size_t k = 0; k < a->counts[2]; k++) {
                    const char *from = element(a, o, j, k);
                    memcpy(a->copy + (from - a->memory), from, a->size);
                }
        if (memcmp(a->memory, a->copy, a->bytes)) fail(c, "array %d was written to where it must not be", i);
    }
}

/* ---- A row on its own ---- */

struct row {
    size_t o, k; /* outer and inner index */
    char *x, *g, *y, *bias, *where, *lse, *log_prob, *other;
    fsm_modifiers modifiers;
};

static void *memory_of(size_t bytes) {
    void *memory = malloc(bytes);
    if (!memory) abort();
    return memset(memory, 0x5a, bytes);
}

/* Elements of a row, next to each other, as they were before the call. */
static char *gathered(const struct call *c, enum name name, size_t o, size_t k) {
    const struct array *a = &c->arrays[name];
    if (!a->memory) return NULL;
    char *to = memory_of(c->n * a->size);
    for (size_t i = 0; i < c->n; i++) memcpy(to + i * a->size, old_element(a, o, i, k), a->size);
    return to;
}

static const void *number(const struct call *c, enum name name, const struct row *r) {
    return is_there(c, name) ? old_element(&c->arrays[name], r->o, 0, r->k) : NULL;
}

static struct row row_of(const struct call *c, size_t o, size_t k) {
    const size_t size = formats[c->type].size, wide = formats[computed(c->type)].size;
    struct row r = {.o = o, .k = k, .x = gathered(c, c->source, o, k)};
    if (c->function == VJP) r.g = gathered(c, G, o, k);
    r.y = memory_of((is_reduction(c->op) ? 1 : c->n) * size);
    r.other = memory_of((c->n + 1) * wide);
    r.bias = gathered(c, BIAS, o, k);
    r.where = gathered(c, WHERE, o, k);
    if (is_there(c, LSE)) r.lse = memory_of(wide);
    if (is_there(c, LOG_PROB)) r.log_prob = memory_of(wide);
    r.modifiers = (fsm_modifiers){
        .temperature = number(c, TEMPERATURE, &r),
        .softcap = c->modifiers.softcap,
        .bias = r.bias,
        .bias_type = c->modifiers.bias_type,
        .bias_strides = {0, 1, 0},
        .where = (const unsigned char *)r.where,
        .where_strides = {0, 1, 0},
        .sink = number(c, SINK, &r),
        .empty = c->modifiers.empty,
        .lse = r.lse,
        .target = number(c, TARGET, &r),
        .ignored = c->modifiers.ignored,
        .scale = number(c, SCALE, &r),
        .lse_scale = c->modifiers.lse_scale,
        .log_prob = r.log_prob,
    };
    return r;
}

static void free_row(struct row *r) {
    char *all[] = {r->x, r->g, r->y, r->bias, r->where, r->lse, r->log_prob, r->other};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static bool is_same(fsm_type type, const void *a, const void *b) {
    return !memcmp(a, b, formats[type].size) || (isnan(value_at(a, type)) && isnan(value_at(b, type)));
}

static void run_row(const struct call *c, const struct row *r, fsm_op op, const fsm_modifiers *m, void *y) {
    fsm_status status = c->function == VJP ? fsm_vjp(c->isa, op, c->type, r->g, r->x, y, 1, c->n, 1, NULL, 1)
                                           : fsm_run_modified(c->isa, op, c->type, r->x, y, 1, c->n, 1, NULL, 1,
                                                              c->function == MODIFIED ? m : NULL);
    if (status != FSM_OK) fail(c, "status %d for a row alone", (int)status);
}

static void check_number(const struct call *c, enum name name, const struct row *r, const char *want) {
    if (want && !is_same(computed(c->type), element(&c->arrays[name], r->o, 0, r->k), want))
        fail(c, "array %d at %zu, %zu is %.17g, in a row alone %.17g", (int)name, r->o, r->k,
             value_at(element(&c->arrays[name], r->o, 0, r->k), computed(c->type)), value_at(want, computed(c->type)));
}

static void check_bits(const struct call *c, const struct row *r) {
    const struct array *y = &c->arrays[c->result];
    run_row(c, r, c->op, &r->modifiers, r->y);
    for (size_t i = 0; i < y->counts[1]; i++) {
        const char *got = element(y, r->o, i, r->k), *want = r->y + i * y->size;
        if (!is_same(c->type, got, want))
            fail(c, "y at %zu, %zu, %zu is %.17g, in a row alone %.17g", r->o, i, r->k, value_at(got, c->type),
                 value_at(want, c->type));
    }
    check_number(c, LSE, r, r->lse);
    check_number(c, LOG_PROB, r, r->log_prob);
}

/* ---- The same from other ops ---- */

/* Losses have the bits of log_softmax, lse those of logsumexp. */
static void check_other_ops(const struct call *c, const struct row *r) {
    fsm_modifiers m = r->modifiers;
    m.lse = m.log_prob = NULL;
    if (c->op == FSM_LOSS_GRAD && r->log_prob && !is_half(c->type)) {
        run_row(c, r, FSM_LOG_PROB, &m, r->other);
        check_number(c, LOG_PROB, r, r->other);
    }
    const int64_t target = m.target ? *m.target : 0;
    if (c->op == FSM_LOG_PROB && target != m.ignored) {
        m.target = NULL;
        run_row(c, r, FSM_LOG_SOFTMAX, &m, r->other);
        if (!is_same(c->type, r->y, r->other + (size_t)target * formats[c->type].size))
            fail(c, "log_prob %.17g, log_softmax %.17g", value_at(r->y, c->type),
                 value_at(r->other + (size_t)target * formats[c->type].size, c->type));
    }
    m.target = NULL, m.empty = NULL;
    if (r->lse && !is_half(c->type)) {
        run_row(c, r, FSM_LOGSUMEXP, &m, r->other);
        check_number(c, LSE, r, r->other);
    }
}

/* ---- What results allow ---- */

static double rounded(fsm_type type, double value) { return type == FSM_F64 ? value : (double)(float)value; }

/* The i-th logit, after modifiers. */
static double logit(const struct call *c, const struct row *r, size_t i) {
    const fsm_type type = computed(c->type);
    const fsm_modifiers *m = &r->modifiers;
    double z = value_at(r->x + i * formats[c->type].size, c->type);
    if (c->function != MODIFIED) return z;
    if (m->where && !m->where[i]) return -(double)INFINITY;
    if (m->temperature) z = rounded(type, z / value_at(m->temperature, type));
    if (m->softcap > 0) z = rounded(type, m->softcap * tanh(rounded(type, z / m->softcap)));
    if (m->bias) z = rounded(type, z + value_at(r->bias + i * formats[m->bias_type].size, m->bias_type));
    return z;
}

/* What is known of the logits so far: how many are above -inf, the largest, and whether there is a NaN. */
struct known {
    size_t count, some;
    double max;
    bool nan;
};

static void learn(struct known *k, double z) {
    k->count++;
    k->some += z > -(double)INFINITY;
    k->nan |= isnan(z);
    if (z > k->max) k->max = z;
}

static double epsilon(fsm_type type) { return ldexp(1, -(int)formats[type].mantissa); }

/* A logsumexp lies between its largest logit and log(count) more; `less` is taken off. */
static void check_logsumexp(const struct call *c, const struct known *k, double y, double less) {
    const double slack = 4 * epsilon(c->type) * (fabs(k->max) + fabs(less) + 1), most = log((double)k->count + 1);
    bool good = y >= k->max - less - slack && y <= k->max + most - less + slack;
    if (k->nan)
        good = isnan(y);
    else if (isinf(k->max))
        good = y == k->max;
    else if (is_half(c->type) && isinf(y)) /* the logits were of float32, and can be beyond it */
        good = fabs(k->max) > 65000 && (y > 0) == (k->max > 0);
    if (!good) fail(c, "log-sum-exp %.17g of %zu logits, the largest %.17g", y, k->count, k->max);
}

static void check_map(const struct call *c, const struct row *r, const struct known *k) {
    const bool logs = c->op == FSM_LOG_SOFTMAX, nothing = !k->nan && !k->some && c->modifiers.empty;
    const bool nan = k->nan || isinf(k->max), monotone = !nan && !(c->modifiers.softcap > 0);
    const double low = logs ? -(double)INFINITY : 0, high = logs ? 0 : 1, first = value_at(r->y, c->type);
    double last_y = 0, last_z = 0, sum = 0, lost = 0; /* long double is too short under valgrind */
    for (size_t i = 0; i < c->n; i++) {
        const double y = value_at(r->y + i * formats[c->type].size, c->type), z = logit(c, r, i);
        bool good = nan ? isnan(y) : y >= low && y <= high && (z > -(double)INFINITY || y == low);
        if (nothing) good = y == first || (isnan(y) && isnan(first));
        if (i && monotone && ((z >= last_z && y < last_y) || (z <= last_z && y > last_y))) good = false;
        if (!good) fail(c, "result %.17g of logit %.17g, after %.17g of %.17g", y, z, last_y, last_z);
        const double part = logs ? exp(y) : y, next = sum + part;
        lost += sum >= part ? (sum - next) + part : (part - next) + sum;
        sum = next;
        last_y = y, last_z = z;
    }
    const double sum_slack = (logs && is_half(c->type) ? 100 : 4) * epsilon(c->type);
    const double least = is_half(c->type) ? 0x1p-24 * (double)c->n : 0;
    if (!nan && !c->modifiers.sink && !(fabs((sum - 1) + lost) <= sum_slack + least) && !(logs && !is_half(c->type)))
        fail(c, "the sum of a row is %.17g", sum + lost);
}

static void check_element(const struct call *c, double x, double y) {
    const bool sigmoid = c->op == FSM_SIGMOID;
    const double low = sigmoid ? 0 : fmax(x, 0) * (1 - 4 * epsilon(c->type));
    const double high = sigmoid ? 1 : (fmax(x, 0) + log(2)) * (1 + 4 * epsilon(c->type));
    bool good = isnan(x) ? isnan(y) : y >= low && y <= high;
    if (isinf(x)) good = x > 0 ? y == (sigmoid ? 1 : x) : y == 0;
    if (!good) fail(c, "result %.17g of %.17g", y, x);
}

static void check_results(const struct call *c, const struct row *r) {
    struct known k = {.max = -(double)INFINITY};
    const size_t size = formats[c->type].size;
    for (size_t i = 0; i < c->n; i++) {
        const double z = logit(c, r, i);
        learn(&k, z);
        if (c->op == FSM_LOGCUMSUMEXP) check_logsumexp(c, &k, value_at(r->y + i * size, c->type), 0);
        if (c->op == FSM_SIGMOID || c->op == FSM_SOFTPLUS) check_element(c, z, value_at(r->y + i * size, c->type));
    }
    if (r->modifiers.sink && c->function == MODIFIED) learn(&k, value_at(r->modifiers.sink, computed(c->type)));
    if (c->op == FSM_LOGSUMEXP) check_logsumexp(c, &k, value_at(r->y, c->type), 0);
    if (c->op == FSM_LOGMEANEXP && c->n) check_logsumexp(c, &k, value_at(r->y, c->type), log((double)k.count));
    if (c->op <= FSM_LOG_SOFTMAX && c->n) check_map(c, r, &k);
    const bool ignored = has_target(c->op) && *r->modifiers.target == r->modifiers.ignored;
    for (size_t i = 0; ignored && i < (c->op == FSM_LOG_PROB ? 1 : c->n); i++)
        if (value_at(r->y + i * size, c->type) != 0) fail(c, "an ignored row has %.17g", value_at(r->y, c->type));
}

/* ---- All of it ---- */

enum { MOST_ROWS = 6 };

static void check(const struct call *c, fsm_status status) {
    if (status != expected_status(c)) fail(c, "status %d, not %d", (int)status, (int)expected_status(c));
    const size_t rows = status == FSM_OK && c->outer ? c->outer * c->inner : 0, step = rows / MOST_ROWS + 1;
    for (size_t i = (rows + c->n) % step; i < rows; i += step) {
        struct row r = row_of(c, i / c->inner, i % c->inner);
        check_bits(c, &r);
        if (c->function == MODIFIED) check_other_ops(c, &r);
        if (c->function != VJP) check_results(c, &r);
        free_row(&r);
    }
    check_memory(c, status);
}

#endif
