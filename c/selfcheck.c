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

enum { ISAS = 8, TYPES = FSM_F64 + 1 }; /* the half types are checked along with FSM_F32 */
enum { OPS = FSM_SOFTPLUS + 1 };        /* those of rows with a target are made of others */

static const struct op {
    const char *name;
    double bound[TYPES]; /* ulp */
    bool one;            /* one number a row */
} ops[OPS] = {
    [FSM_SOFTMAX] = {"softmax", {3, 3.5}, false},           [FSM_LOG_SOFTMAX] = {"log_softmax", {2, 2.5}, false},
    [FSM_LOGSUMEXP] = {"logsumexp", {1.5, 2}, true},        [FSM_LOGMEANEXP] = {"logmeanexp", {1.5, 2}, true},
    [FSM_LOGCUMSUMEXP] = {"logcumsumexp", {1.5, 2}, false}, [FSM_SIGMOID] = {"sigmoid", {3, 3}, false},
    [FSM_SOFTPLUS] = {"softplus", {3, 3}, false},
};

static const struct type {
    const char *name;
    size_t size;
    int digits, lowest; /* of the significand; the exponent of the smallest subnormal */
    int64_t width;      /* e^-width is under half of it */
    int64_t far;        /* near the |max| from which the kernels subtract it */
} types[TYPES] = {{"f32", sizeof(float), FLT_MANT_DIG, -149, 103, 205},
                  {"f64", sizeof(double), DBL_MANT_DIG, -1074, 744, 1495}};

static double get(fsm_type type, const void *p, size_t i) {
    return type == FSM_F32 ? (double)((const float *)p)[i] : ((const double *)p)[i];
}
static void put(fsm_type type, void *p, size_t i, double value) {
    if (type == FSM_F32)
        ((float *)p)[i] = (float)value;
    else
        ((double *)p)[i] = value;
}
static void copy(fsm_type type, void *to, const void *from) {
    if (type == FSM_F32)
        *(float *)to = *(const float *)from;
    else
        *(double *)to = *(const double *)from;
}
static void put_bits(fsm_type type, void *p, size_t i, uint64_t bits) {
    uint32_t low = (uint32_t)bits;
    memcpy((char *)p + i * types[type].size, type == FSM_F32 ? (void *)&low : (void *)&bits, types[type].size);
}

/* ---- What came of it ---- */

static struct result {
    uint64_t digest;
    long double worst;
    char failure[160]; /* the first; empty when all is well */
} results[ISAS][TYPES][OPS];

static void fail(struct result *r, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    if (!*r->failure) vsnprintf(r->failure, sizeof r->failure, format, arguments);
    va_end(arguments);
}

/* ---- Rows ---- */

static uint64_t state;

static uint64_t draw(void) { /* splitmix64 (Vigna) */
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Numbers are made in units of 2^-52, where 1744 fits an int64_t, and rounded once. */
#define UNIT 0x1p-52
#define FIXED(x) ((int64_t)((x) / UNIT))

static int64_t uniform(int64_t width) { return -(int64_t)(draw() >> 12) * width; }

static int64_t normal(int64_t spread) { /* a sum of twelve */
    int64_t sum = -6 * (1 << 21);
    for (int i = 0; i < 4; i++) {
        uint64_t z = draw();
        sum += (int64_t)((z & 0x1fffff) + (z >> 21 & 0x1fffff) + (z >> 42 & 0x1fffff));
    }
    return (sum * ((int64_t)1 << 31) + (int64_t)(draw() >> 33)) * spread;
}

enum set {
    NORMAL_1,
    NORMAL_10,
    UNIFORM,
    UNIFORM_UP,
    UNIFORM_DOWN,
    FAR,
    CONSTANT,
    GAP,
    RAMP_UP,
    RAMP_DOWN,
    SUBNORMAL,
    HUGE_ONES,
    SPECIAL,
    SETS
};

static double constant(fsm_type type, size_t k) {
    double largest = type == FSM_F32 ? (double)FLT_MAX : DBL_MAX, smallest = type == FSM_F32 ? 0x1p-149 : 0x1p-1074;
    const double constants[] = {0,   1,       -1,   0.1,  88.7,    -88.8,    209.9,
                                210, -1499.5, 1500, 1e30, largest, -largest, smallest};
    return constants[k % (sizeof constants / sizeof *constants)];
}

/* Row k of a block of rows of n. */
static void fill(enum set set, fsm_type type, void *x, size_t k, size_t n) {
    const int64_t width = types[type].width, span = k % 2 ? 1500 : width, step = (span << 52) / (int64_t)n;
    const int fraction = types[type].digits - 1;
    for (size_t i = 0; i < n; i++) {
        int64_t v = 0;
        switch (set) {
            case NORMAL_1:
                v = normal(1);
                break;
            case NORMAL_10:
            case SPECIAL:
                v = normal(10);
                break;
            case UNIFORM:
                v = uniform(width) + FIXED(0.3);
                break;
            case UNIFORM_UP:
                v = uniform(width) + FIXED(77.7);
                break;
            case UNIFORM_DOWN:
                v = uniform(width) - FIXED(1000.3);
                break;
            case FAR:
                v = normal(3) + (k % 2 ? -types[type].far : types[type].far) * FIXED(1.0);
                break;
            case GAP:
                v = FIXED(20.1) - (i != k % n) * (int64_t)(k * 7 + n) % (width + 5) * FIXED(1.01);
                break;
            case RAMP_UP:
                v = (int64_t)i * step - FIXED(0.7);
                break;
            case RAMP_DOWN:
                v = FIXED(3.3) - (int64_t)i * (step >> k % 16);
                break;
            case CONSTANT:
            case SUBNORMAL:
            case HUGE_ONES:
            case SETS:
                break;
        }
        put(type, x, i, (double)v * UNIT);
        if (set == CONSTANT) put(type, x, i, constant(type, k + n));
        uint64_t mantissa = draw() >> (64 - fraction), sign = (k ? draw() % 2 : 0) << (type == FSM_F32 ? 31 : 63);
        if (set == SUBNORMAL) put_bits(type, x, i, mantissa | sign);
        if (set == HUGE_ONES)
            put_bits(type, x, i, mantissa | (type == FSM_F32 ? UINT64_C(0xfe) : 0x7fe) << fraction | sign);
    }
    if (set != SPECIAL) return;
    const size_t kind = (k + n) % 7;
    for (size_t i = 0; i < n; i++) {
        if (kind == 0 || (kind < 5 && draw() % 4 == 0)) put(type, x, i, -(double)INFINITY);
        if (kind == 5) put(type, x, i, draw() % 2 ? 0.0 : -0.0);
    }
    if (kind == 1 || kind == 2) put(type, x, draw() % n, (double)INFINITY);
    if (kind == 2 || kind == 3) put(type, x, draw() % n, (double)NAN);
    if (kind == 6) put(type, x, draw() % n, -(double)INFINITY);
}

/* ---- The exact results ---- */

/* Is long double long enough? Valgrind's is not, whatever the compiler says. */
static bool can_compare(void) {
    volatile long double one = 1, more = 0x1p-63L;
    return LDBL_MANT_DIG >= 64 && one + more != one;
}

struct exact {
    long double y, floor; /* errors count in ulp of the larger; floor < 0: not computed */
};

struct row {
    size_t n;
    long double *x, *e;        /* e^(x - max) */
    long double max, sum, log; /* of all; log (sum e^(x - max)), without cancellation */
    bool nan;
};

/* Pairwise, leaving out what equals the maximum. */
static long double sum_below(const struct row *r, size_t from, size_t to) {
    if (to - from > 8) return sum_below(r, from, from + (to - from) / 2) + sum_below(r, from + (to - from) / 2, to);
    long double sum = 0;
    for (size_t i = from; i < to; i++) sum += r->x[i] < r->max ? r->e[i] : 0;
    return sum;
}

static void open_row(struct row *r) {
    size_t count = 0;
    r->max = -(long double)INFINITY;
    r->nan = false;
    for (size_t i = 0; i < r->n; i++) {
        r->nan |= isnan(r->x[i]) != 0;
        if (r->x[i] > r->max) r->max = r->x[i];
    }
    if (!isfinite(r->max)) return;
    for (size_t i = 0; i < r->n; i++) {
        r->e[i] = expl(r->x[i] - r->max);
        count += r->x[i] == r->max;
    }
    long double below = sum_below(r, 0, r->n);
    r->sum = (long double)count + below;
    r->log = logl((long double)count) + log1pl(below / (long double)count);
}

/* Results that cost a logarithm or an exponential each are sampled on long rows. */
static bool sampled(const struct row *r, size_t i) { return r->n < 300 || i % 32 == 5 || i + 4 > r->n; }

static struct exact softmax_at(const struct row *r, size_t i) {
    return (struct exact){r->nan || !isfinite(r->max) ? (long double)NAN : r->e[i] / r->sum, 0};
}
static struct exact log_softmax_at(const struct row *r, size_t i) {
    return (struct exact){r->nan || !isfinite(r->max) ? (long double)NAN : (r->x[i] - r->max) - r->log, 0};
}
static struct exact logsumexp_of(const struct row *r, bool mean) {
    long double log_n = logl((long double)r->n);
    if (r->nan || !isfinite(r->max)) return (struct exact){r->nan ? (long double)NAN : r->max, 0};
    return (struct exact){r->max + (r->log - (mean ? log_n : 0)), mean ? log_n : r->log};
}
static struct exact sigmoid_at(const struct row *r, size_t i) {
    long double x = r->x[i], e = expl(-fabsl(x));
    return (struct exact){isnan(x) ? x : x < 0 ? e / (1 + e) : 1 / (1 + e), sampled(r, i) ? 0 : -1};
}
static struct exact softplus_at(const struct row *r, size_t i) {
    long double x = r->x[i];
    return (struct exact){isnan(x) ? x : (x > 0 ? x : 0) + log1pl(expl(-fabsl(x))), 0};
}

/* Sums of e^(x - base), where no base is so far below that long double overflows. */
static void logcumsumexp(const struct row *r, struct exact *y) {
    long double base = 0, max = -(long double)INFINITY, top = 0, count = 0, below = 0, lost = 0;
    for (size_t i = 0; i < r->n; i++) {
        long double x = r->x[i], more = 0;
        if (isnan(max) || isnan(x)) {
            max = (long double)NAN;
        } else if (x > max) {
            more = count * top;
            if (!isfinite(max) || x - base > 5000) {
                long double to = x - r->max > -5000 ? r->max : x;
                below = isfinite(max) ? (below + more) * expl(base - to) : 0;
                lost = more = 0;
                base = to;
            }
            max = x;
            count = 1;
            top = base == r->max ? r->e[i] : expl(x - base);
        } else if (x == max) {
            count++;
        } else {
            more = base == r->max ? r->e[i] : expl(x - base);
        }
        long double sum = below + (more - lost); /* Kahan */
        lost = (sum - below) - (more - lost);
        below = sum;
        if (!isfinite(max)) {
            y[i] = (struct exact){max, 0};
        } else if (sampled(r, i)) {
            long double log = logl(count) + log1pl(below / (count * top));
            y[i] = (struct exact){max + log, log};
        } else {
            y[i] = (struct exact){0, -1};
        }
    }
}

static void compute_exact(const struct row *r, fsm_op op, struct exact *y) {
    if (ops[op].one) *y = logsumexp_of(r, op == FSM_LOGMEANEXP);
    if (op == FSM_LOGCUMSUMEXP) logcumsumexp(r, y);
    for (size_t i = 0; i < r->n; i++) {
        if (op == FSM_SOFTMAX) y[i] = softmax_at(r, i);
        if (op == FSM_LOG_SOFTMAX) y[i] = log_softmax_at(r, i);
        bool skip = !sampled(r, i);
        if (op == FSM_SIGMOID) y[i] = skip ? (struct exact){0, -1} : sigmoid_at(r, i);
        if (op == FSM_SOFTPLUS) y[i] = skip ? (struct exact){0, -1} : softplus_at(r, i);
    }
}

static long double error_ulp(fsm_type type, double got, struct exact want) {
    if (want.floor < 0) return 0;
    if (isnan(want.y)) return isnan(got) ? 0 : (long double)INFINITY;
    if ((double)want.y == got) return 0; /* also infinities, and what overflows to them */
    int exponent, overflow = type == FSM_F32 ? FLT_MAX_EXP : DBL_MAX_EXP;
    long double size = fmaxl(fabsl(want.y), want.floor);
    frexpl(size, &exponent);
    if (exponent > overflow) return !signbit(got) == !signbit(want.y) && isinf(got) ? 0 : (long double)INFINITY;
    exponent -= types[type].digits;
    if (exponent < types[type].lowest || size == 0) exponent = types[type].lowest;
    return ldexpl(fabsl((long double)got - want.y), -exponent);
}

/* ---- Layouts ---- */

/* All that a layout may change is where things lie. Row k is outer k / inner, inner k % inner. */
struct layout {
    const char *name;
    size_t outer, inner;
    ptrdiff_t x[3], y[3]; /* strides of outer, n, inner */
    unsigned threads;
    bool plain, in_place; /* strides given as NULL; y is x */
};

struct block {
    fsm_type type;
    size_t rows, n;
    void *x, *y, *in, *out; /* dense, and as a layout has them */
    void *row;              /* scratch */
    size_t turn;            /* which layout: one a block, in turns, since emulators are slow */
};

enum { UNTOUCHED = 0xA5 };

/* Where the first element is, so that the lowest lies one element in, and how many elements that takes. */
static size_t first_of(const ptrdiff_t s[3], const size_t count[3], size_t *extent) {
    ptrdiff_t low = 1, high = 2;
    for (int d = 0; d < 3; d++) {
        ptrdiff_t reach = (ptrdiff_t)(count[d] - 1) * s[d];
        *(reach < 0 ? &low : &high) += reach < 0 ? -reach : reach;
    }
    *extent = (size_t)(low + high);
    return (size_t)low;
}

static void canonical_nans(fsm_type type, void *p, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (isnan(get(type, p, i))) put(type, p, i, (double)NAN);
}

/* Where row k begins, in bytes. */
static ptrdiff_t row_at(const struct layout *l, const ptrdiff_t s[3], size_t first, size_t k, size_t size) {
    ptrdiff_t at = (ptrdiff_t)(k / l->inner) * s[0] + (ptrdiff_t)(k % l->inner) * s[2];
    return ((ptrdiff_t)first + at) * (ptrdiff_t)size;
}

static void check_layout(const struct block *b, const fsm_isa *isa, fsm_op op, const struct layout *l,
                         struct result *r) {
    const size_t size = types[b->type].size, m = ops[op].one ? 1 : b->n;
    const size_t in[3] = {l->outer, b->n, l->inner}, out[3] = {l->outer, m, l->inner};
    const ptrdiff_t *sx = l->x, *sy = l->in_place ? l->x : l->y;
    size_t x_extent, y_extent, x_first = first_of(sx, in, &x_extent), y_first = first_of(sy, out, &y_extent);
    char *x = b->in, *y = l->in_place ? b->in : b->out;
    memset(x, UNTOUCHED, x_extent * size);
    memset(y, UNTOUCHED, y_extent * size);
    for (size_t k = 0; k < b->rows; k++) {
        char *to = x + row_at(l, sx, x_first, k, size), *from = (char *)b->x + k * b->n * size;
        for (size_t i = 0; i < b->n; i++, to += sx[1] * (ptrdiff_t)size) copy(b->type, to, from + i * size);
    }
    const ptrdiff_t strides[6] = {sx[0], sx[1], sx[2], sy[0], sy[1], sy[2]};
    if (fsm_run(isa, op, b->type, x + x_first * size, y + y_first * size, l->outer, b->n, l->inner,
                l->plain ? NULL : strides, l->threads))
        fail(r, "%s: an error was returned", l->name);
    const bool repeated = sx[0] == 0 && l->outer > 1; /* all rows are one: the last that was copied */
    for (size_t k = 0; k < b->rows; k++) {
        char *got = y + row_at(l, sy, y_first, k, size), *row = b->row;
        for (size_t i = 0; i < m; i++, got += sy[1] * (ptrdiff_t)size) {
            copy(b->type, row + i * size, got);
            memset(got, UNTOUCHED, size);
        }
        canonical_nans(b->type, row, m);
        if (memcmp(row, (char *)b->y + (repeated ? b->rows - 1 : k) * m * size, m * size))
            fail(r, "%s: other bits at n = %zu", l->name, b->n);
    }
    if (y[0] != (char)UNTOUCHED || memcmp(y, y + 1, y_extent * size - 1))
        fail(r, "%s: wrote beyond its rows at n = %zu", l->name, b->n);
}

static void check_other_layout(const struct block *b, const fsm_isa *isa, fsm_op op, struct result *r) {
    const size_t rows = b->rows, outer = rows < 2 ? 1 : 2, inner = rows / outer;
    const ptrdiff_t n = (ptrdiff_t)b->n, m = ops[op].one ? 1 : n, k = (ptrdiff_t)rows, w = (ptrdiff_t)inner;
    const ptrdiff_t x = 2 * n + 1, y = 3 * m + 1;
    const struct layout layouts[] = {
        {"rows, 2 threads", rows, 1, {n, 1, 1}, {m, 1, 1}, 2, true, false},
        {"rows in place, 5 threads", rows, 1, {n, 1, 1}, {m, 1, 1}, 5, true, !ops[op].one},
        {"columns", 1, rows, {n * k, k, 1}, {m * k, k, 1}, 1, true, false},
        {"columns in place, 5 threads", 1, rows, {n * k, k, 1}, {m * k, k, 1}, 5, true, !ops[op].one},
        {"rows of columns, 2 threads", outer, inner, {n * w, w, 1}, {m * w, w, 1}, 2, true, false},
        {"apart, 5 threads", outer, inner, {x * w, 2, x}, {y * w, 3, y}, 5, false, false},
        {"reversed", rows, 1, {-n - 1, -1, 1}, {-m - 2, -1, 1}, 1, false, false},
        {"reversed rows", rows, 1, {-n - 1, 1, 1}, {-m - 2, 1, 1}, 1, false, false},
        {"with gaps", rows, 1, {n + 5, 1, 1}, {m + 3, 1, 1}, 1, false, false},
        {"one row repeated", rows, 1, {0, 1, 1}, {m, 1, 1}, 1, false, false},
    };
    check_layout(b, isa, op, &layouts[b->turn % (sizeof layouts / sizeof *layouts)], r);
}

/* ---- One block of rows on everything ---- */

static void *get_memory(size_t bytes) {
    void *p = malloc(bytes);
    if (!p) {
        fprintf(stderr, "selfcheck: no memory\n");
        exit(2);
    }
    return p;
}

static void add_to_digest(struct result *r, fsm_type type, const void *y, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = 0;
        uint32_t narrow;
        memcpy(&narrow, (const char *)y + i * types[type].size, sizeof narrow);
        if (type == FSM_F64) memcpy(&bits, (const char *)y + i * sizeof bits, sizeof bits);
        r->digest = (r->digest ^ (type == FSM_F64 ? bits : narrow)) * 0x9e3779b97f4a7c15;
        r->digest ^= r->digest >> 29;
    }
}

static void check_errors(const struct block *b, const struct exact *want, size_t count, fsm_op op, struct result *r) {
    for (size_t i = 0; i < count; i++) {
        double got = get(b->type, b->y, i);
        long double error = error_ulp(b->type, got, want[i]);
        if (!(error <= r->worst)) r->worst = error;
        if (!(error <= ops[op].bound[b->type]))
            fail(r, "%.5Lg ulp at n = %zu, got %a, exact %La", error, b->n, got, want[i].y);
    }
}

/* ---- Half types ---- */

static const struct half {
    fsm_type type;
    const char *name;
    int digits, lowest, highest; /* of the significand; exponents of the smallest and the largest normal numbers */
} halves[] = {{FSM_F16, "f16", 11, -14, 15}, {FSM_BF16, "bf16", 8, -126, 127}};

static float from_half(const struct half *h, uint16_t bits) {
    const int fraction = bits & ((1 << (h->digits - 1)) - 1), field = (bits & 0x7fff) >> (h->digits - 1);
    if (field == h->highest - h->lowest + 2) return fraction ? NAN : bits >> 15 ? -INFINITY : INFINITY;
    const int significand = field ? fraction + (1 << (h->digits - 1)) : fraction;
    return ldexpf(bits >> 15 ? -(float)significand : (float)significand,
                  (field ? field - 1 : 0) + h->lowest + 1 - h->digits);
}

static uint16_t to_half(const struct half *h, float x) {
    const int infinity = (h->highest - h->lowest + 2) << (h->digits - 1), sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x)) return 0x7fff;
    if (x == 0 || isinf(x)) return (uint16_t)(sign | (x == 0 ? 0 : infinity));
    int exponent = ilogbf(x) < h->lowest ? h->lowest : ilogbf(x);
    const int significand = (int)lrint(ldexp(fabs((double)x), h->digits - 1 - exponent));
    const int bits = ((exponent - h->lowest) << (h->digits - 1)) + significand; /* a carry goes into the exponent */
    return (uint16_t)(sign | (bits < infinity ? bits : infinity));
}

/* x rounded to a half type, and its results: those of the rounded x in float32, rounded. */
static void check_half(const struct block *b, const struct half *h, const fsm_isa *isa, fsm_op op, struct result *r) {
    const size_t count = b->rows * b->n, results = ops[op].one ? b->rows : count;
    uint16_t *x = get_memory(count * sizeof *x), *y = get_memory(count * sizeof *y);
    float *wide = get_memory(count * sizeof *wide);
    for (size_t i = 0; i < count; i++) x[i] = to_half(h, ((const float *)b->x)[i]), wide[i] = from_half(h, x[i]);
    if (fsm_run(isa, op, FSM_F32, wide, b->out, b->rows, b->n, 1, NULL, 1) ||
        fsm_run(isa, op, h->type, x, y, b->rows, b->n, 1, NULL, 2))
        fail(r, "%s: an error was returned", h->name);
    for (size_t i = 0; i < results; i++) {
        const float want = ((const float *)b->out)[i];
        if (isnan(want) ? !isnan(from_half(h, y[i])) : y[i] != to_half(h, want))
            fail(r, "%s: %a was rounded to %a", h->name, (double)want, (double)from_half(h, y[i]));
    }
    free(x), free(y), free(wide);
}

/* ---- Modifiers ---- */

/* What modifies some rows, drawn at random: for each of them, each element, or all. */
struct modified {
    fsm_modifiers m;
    void *numbers, *bias, *lse; /* temperatures and then sinks, one a row; one an element */
    unsigned char *where;
    double empty[1];
    bool each; /* whether rows have biases and masks of their own */
};

enum { EVERY = 7 }; /* one block of so many: emulators are slow */

static struct modified draw_modifiers(const struct block *b) {
    const size_t size = types[b->type].size, count = b->rows * b->n, kind = b->turn / EVERY;
    struct modified d = {.numbers = get_memory(2 * b->rows * size), .bias = get_memory(count * size)};
    d.lse = get_memory(b->rows * size);
    d.where = get_memory(count);
    d.each = kind % 2;
    for (size_t i = 0; i < count; i++) put(b->type, d.bias, i, (double)normal(2) * UNIT), d.where[i] = draw() % 4 != 0;
    for (size_t k = 0; k < b->rows; k++) {
        put(b->type, d.numbers, k, (double)(draw() % 1000 + 1) / 256);
        put(b->type, d.numbers, b->rows + k, (double)normal(5) * UNIT);
    }
    put(b->type, d.empty, 0, 0.25);
    if (kind % 3 != 0) d.m.temperature = d.numbers;
    if (kind % 5 != 1) d.m.bias = d.bias, d.m.bias_type = b->type;
    if (kind % 5 != 2) d.m.where = d.where;
    if (kind % 4 == 3) d.m.sink = (char *)d.numbers + b->rows * size;
    if (kind % 4 == 1) d.m.softcap = 20;
    d.m.lse = d.lse;
    return d;
}

/* All elements by hand, from b->x to z, a row every `total`; the cap as rows of one. */
static void modify_by_hand(const struct block *b, const fsm_isa *isa, const struct modified *d, char *z, size_t total) {
    const size_t size = types[b->type].size, n = b->n, count = b->rows * n;
    const fsm_modifiers cap = {.softcap = d->m.softcap};
    const bool single = b->type == FSM_F32;
    void *x = get_memory(count * size);
    memcpy(x, b->x, count * size);
    for (size_t i = 0; d->m.temperature && i < count; i++)
        if (single)
            ((float *)x)[i] /= ((float *)d->numbers)[i / n];
        else
            ((double *)x)[i] /= ((double *)d->numbers)[i / n];
    if (cap.softcap > 0) fsm_run_modified(isa, FSM_LOGSUMEXP, b->type, x, x, count, 1, 1, NULL, 1, &cap);
    for (size_t i = 0; i < count; i++) {
        const size_t at = d->each ? i : i % n;
        if (d->m.bias && single) ((float *)x)[i] += ((float *)d->bias)[at];
        if (d->m.bias && !single) ((double *)x)[i] += ((double *)d->bias)[at];
        if (d->m.where && !d->where[at]) put(b->type, x, i, -(double)INFINITY);
        copy(b->type, z + (i / n * total + i % n) * size, (char *)x + i * size);
    }
    free(x);
}

static void check_modified(const struct block *b, const fsm_isa *isa, fsm_op op, struct result *r) {
    const size_t size = types[b->type].size, rows = b->rows, n = b->n, m = ops[op].one ? 1 : n;
    struct modified d = draw_modifiers(b);
    d.m.empty = d.empty;
    const size_t total = n + (d.m.sink ? 1 : 0);
    char *z = get_memory(rows * total * size), *want = get_memory(rows * total * size),
         *got = get_memory(rows * n * size);
    char *columns = get_memory(rows * n * size), *lse = get_memory(rows * size);
    modify_by_hand(b, isa, &d, z, total);
    for (size_t k = 0; k < rows; k++) {
        bool some = false;
        for (size_t i = 0; i < n; i++)
            copy(b->type, columns + (i * rows + k) * size, (char *)b->x + (k * n + i) * size);
        if (d.m.sink) put(b->type, z, k * total + n, get(b->type, d.numbers, rows + k));
        for (size_t i = 0; i < total; i++) some |= !(get(b->type, z, k * total + i) == -(double)INFINITY);
        char *row = want + k * m * size, *all = get_memory(total * size);
        fsm_run(isa, op, b->type, z + k * total * size, all, 1, total, 1, NULL, 1);
        fsm_run(isa, FSM_LOGSUMEXP, b->type, z + k * total * size, lse + k * size, 1, total, 1, NULL, 1);
        for (size_t i = 0; i < m; i++)
            copy(b->type, row + i * size, some || ops[op].one ? all + i * size : (char *)d.empty);
        free(all);
    }
    canonical_nans(b->type, want, rows * m);
    canonical_nans(b->type, lse, rows);
    add_to_digest(r, b->type, want, rows * m);
    for (int turned = 0; turned < 2; turned++) { /* rows, then columns */
        const ptrdiff_t next = turned ? 1 : (ptrdiff_t)n, step = turned ? (ptrdiff_t)rows : 1, own = d.each;
        const ptrdiff_t strides[6] = {0, step, next, 0, step, ops[op].one ? 1 : next};
        d.m.temperature_strides[1] = d.m.sink_strides[1] = d.m.lse_strides[1] = 1;
        d.m.bias_strides[1] = d.m.where_strides[1] = 1;
        d.m.bias_strides[2] = d.m.where_strides[2] = own * (ptrdiff_t)n;
        if (fsm_run_modified(isa, op, b->type, turned ? columns : b->x, got, 1, n, rows, strides, turned ? 2 : 5, &d.m))
            fail(r, "modified: an error was returned");
        canonical_nans(b->type, got, rows * m);
        canonical_nans(b->type, d.lse, rows);
        if (memcmp(d.lse, lse, rows * size)) fail(r, "modified: another logsumexp at n = %zu", n);
        for (size_t k = 0; k < rows; k++)
            for (size_t i = 0; i < m; i++) {
                const size_t place = turned && m > 1 ? i * rows + k : k * m + i;
                if (memcmp(got + place * size, want + (k * m + i) * size, size))
                    fail(r, "modified: other bits at n = %zu", n);
            }
    }
    free(z), free(want), free(got), free(columns), free(lse);
    free(d.numbers), free(d.bias), free(d.where), free(d.lse);
}

/* ---- Losses ---- */

/* Against softmax (b->y) and log_softmax, taken apart by hand; the last of several rows is ignored. */
static void check_loss(const struct block *b, const fsm_isa *isa, struct result *r) {
    const size_t size = types[b->type].size, rows = b->rows, n = b->n, count = rows * n;
    const bool single = b->type == FSM_F32;
    char *logs = get_memory(count * size), *columns = get_memory(count * size), *got = get_memory(2 * rows * size);
    char *numbers = get_memory(rows * size), *gradients[2] = {get_memory(count * size), get_memory(count * size)};
    int64_t *targets = get_memory(rows * sizeof *targets);
    fsm_modifiers m = {.target = targets, .target_strides = {0, 1}, .ignored = -7};
    m.scale = numbers, m.scale_strides[1] = m.log_prob_strides[1] = 1;
    m.log_prob = got + rows * size;
    fsm_run(isa, FSM_LOG_SOFTMAX, b->type, b->x, logs, rows, n, 1, NULL, 1);
    canonical_nans(b->type, logs, count);
    for (size_t k = 0; k < rows; k++) {
        targets[k] = k && k + 1 == rows ? m.ignored : (int64_t)(draw() % n);
        put(b->type, numbers, k, b->turn % 2 ? 1 : (double)(draw() % 1000 + 1) / 256);
        for (size_t i = 0; i < n; i++)
            copy(b->type, columns + (i * rows + k) * size, (char *)b->x + (k * n + i) * size);
    }
    for (int turned = 0; turned < 2; turned++) {
        const ptrdiff_t next = turned ? 1 : (ptrdiff_t)n, step = turned ? (ptrdiff_t)rows : 1;
        const ptrdiff_t strides[6] = {0, step, next, 0, step, next}, one[6] = {0, step, next, 0, 1, 1};
        const void *x = turned ? columns : b->x;
        char *g = gradients[turned];
        if (fsm_run_modified(isa, FSM_LOSS_GRAD, b->type, x, g, 1, n, rows, strides, 3, &m) ||
            fsm_run_modified(isa, FSM_LOG_PROB, b->type, x, got, 1, n, rows, one, 1, &m))
            fail(r, "loss: an error was returned");
        canonical_nans(b->type, got, 2 * rows);
        canonical_nans(b->type, g, count);
        for (size_t k = 0; k < rows; k++) {
            const bool ignored = targets[k] == m.ignored;
            const size_t t = ignored ? 0 : (size_t)targets[k];
            const double want = ignored ? 0 : get(b->type, logs, k * n + t), s = get(b->type, numbers, k);
            for (int twice = 0; twice < 2; twice++) {
                const double log_prob = get(b->type, got, k + (twice ? rows : 0));
                if (!(log_prob == want || (isnan(log_prob) && isnan(want)))) fail(r, "loss: other bits at n = %zu", n);
            }
            for (size_t i = 0; i < n; i++) {
                const size_t place = turned ? i * rows + k : k * n + i;
                const double p = get(b->type, b->y, k * n + i), slope = get(b->type, g, place);
                const double exact = ignored ? 0 : single ? (double)((float)p * (float)s) : p * s;
                const bool near = fabs(slope - (p - 1) * s) <= (single ? 1e-6 : 1e-15) * s;
                if (isnan(slope) ? !isnan(exact) : !ignored && i == t ? !near : slope != exact)
                    fail(r, "loss: a wrong gradient at n = %zu", n);
                if (turned && memcmp(g + place * size, gradients[0] + (k * n + i) * size, size))
                    fail(r, "loss: another gradient in columns at n = %zu", n);
            }
        }
    }
    add_to_digest(r, b->type, gradients[0], count);
    free(logs), free(columns), free(got), free(numbers), free(targets), free(gradients[0]), free(gradients[1]);
}

/* ---- Gradients ---- */

/* The first row's against the formulas. */
static void check_vjp_errors(const struct block *b, fsm_op op, const void *g, const void *dx, struct result *r) {
    long double sum = 0;
    for (size_t i = 0; i < b->n; i++)
        sum += (long double)get(b->type, g, i) * (op == FSM_SOFTMAX ? (long double)get(b->type, b->y, i) : 1);
    for (size_t i = 0; i < b->n; i += b->n < 300 ? 1 : 32) {
        const long double gi = get(b->type, g, i), y = get(b->type, b->y, i), e = op == FSM_SOFTMAX ? y : expl(y);
        const long double own = op == FSM_SOFTMAX ? y * gi : gi, other = e * sum;
        const struct exact want = {op == FSM_SOFTMAX ? y * (gi - sum) : own - other, fmaxl(fabsl(own), fabsl(other))};
        const long double error = error_ulp(b->type, get(b->type, dx, i), want);
        if (!(error <= 4)) fail(r, "vjp: %Lg ulp off at n = %zu", error, b->n);
    }
}

/* Rows, columns, and all in reverse order: where element i of row k is, and the strides of all three arrays. */
static size_t place_of(const struct block *b, int layout, size_t k, size_t i) {
    const size_t place = k * b->n + i;
    return layout == 0 ? place : layout == 1 ? i * b->rows + k : b->rows * b->n - 1 - place;
}

static void check_vjp(const struct block *b, const fsm_isa *isa, fsm_op op, bool accuracy, struct result *r) {
    const size_t size = types[b->type].size, n = b->n, count = b->rows * n;
    const ptrdiff_t s[3][3] = {{(ptrdiff_t)n, 1, 1}, {1, (ptrdiff_t)b->rows, 1}, {-(ptrdiff_t)n, -1, 1}};
    char *g = get_memory(count * size), *want = get_memory(count * size);
    char *in = get_memory(count * size), *out = get_memory(count * size);
    size_t left = count;
    do put(b->type, g, left - 1, (double)normal(1) * UNIT);
    while (--left);
    if (fsm_vjp(isa, op, b->type, g, b->y, want, b->rows, n, 1, NULL, 1)) fail(r, "vjp: an error was returned");
    canonical_nans(b->type, want, count);
    add_to_digest(r, b->type, want, count);
    if (accuracy) check_vjp_errors(b, op, g, want, r);
    for (int l = 0; l < 3; l++) {
        const ptrdiff_t *a = s[l], strides[9] = {a[0], a[1], a[2], a[0], a[1], a[2], a[0], a[1], a[2]};
        const size_t first = place_of(b, l, 0, 0) * size;
        for (size_t i = 0; i < count; i++) {
            copy(b->type, in + place_of(b, l, i / n, i % n) * size, g + i * size);
            copy(b->type, out + place_of(b, l, i / n, i % n) * size, (char *)b->y + i * size);
        }
        if (fsm_vjp(isa, op, b->type, in + first, out + first, (l ? out : in) + first, l == 1 ? 1 : b->rows, n,
                    l == 1 ? b->rows : 1, strides, 5))
            fail(r, "vjp: an error was returned");
        canonical_nans(b->type, l ? out : in, count);
        for (size_t i = 0; i < count; i++)
            if (memcmp((l ? out : in) + place_of(b, l, i / n, i % n) * size, want + i * size, size))
                fail(r, "vjp: other bits in layout %d at n = %zu", l, n);
    }
    free(g), free(want), free(in), free(out);
}

/* ---- All checks of some rows ---- */

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
