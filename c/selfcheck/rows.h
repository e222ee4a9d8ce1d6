/* The ops and types that are checked, what came of it, and the rows that are drawn. Included by selfcheck.c alone. */
#ifndef FSM_SELFCHECK_ROWS_H
#define FSM_SELFCHECK_ROWS_H

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

/* ---- Memory ---- */

static void *get_memory(size_t bytes) {
    void *p = malloc(bytes);
    if (!p) {
        fprintf(stderr, "selfcheck: no memory\n");
        exit(2);
    }
    return p;
}

#endif
