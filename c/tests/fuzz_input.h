/* From bytes to decisions, numbers, and arrays of no more memory than they need. Included by fuzz.c alone. */
#ifndef FSM_FUZZ_INPUT_H
#define FSM_FUZZ_INPUT_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fastsoftmax.h"

/* The first eight bytes of an input seed a generator, which makes numbers. The others are decisions, one after the other; past
 * the end these come from the generator, too, so that a seed alone is a whole input. */
struct input {
    const uint8_t *next;
    size_t left;
    uint64_t state;
};

static uint64_t draw(struct input *in) { /* splitmix64 (Vigna) */
    uint64_t z = in->state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static unsigned byte_of(struct input *in) {
    if (!in->left) return draw(in) & 255;
    in->left--;
    return *in->next++;
}

/* Less than count, which is at most 2^16. */
static unsigned choose(struct input *in, unsigned count) {
    unsigned drawn = byte_of(in);
    if (count > 256) drawn = drawn << 8 | byte_of(in);
    return drawn % count;
}

static bool one_in(struct input *in, unsigned count) { return choose(in, count) == count - 1; }

static struct input input_of(const uint8_t *bytes, size_t size) {
    struct input in = {bytes, size, 0};
    for (int i = 0; i < 8 && in.left; i++) in.state = in.state << 8 | byte_of(&in);
    return in;
}

/* ---- Numbers of all types, by their bits ---- */

static const struct format {
    unsigned size, mantissa, exponent; /* bytes, bits, bits */
} formats[FSM_TYPE_COUNT] = {{4, 23, 8}, {8, 52, 11}, {2, 10, 5}, {2, 7, 8}};

static bool is_half(fsm_type type) { return formats[type].size == 2; }
static fsm_type computed(fsm_type type) { return type == FSM_F64 ? FSM_F64 : FSM_F32; }

static uint64_t bits_at(const void *p, size_t size) { /* of a little-endian machine, as all of these ISAs are */
    uint64_t bits = 0;
    memcpy(&bits, p, size);
    return bits;
}

static double value_at(const void *p, fsm_type type) {
    if (type == FSM_F64) {
        double d;
        memcpy(&d, p, sizeof d);
        return d;
    }
    uint32_t bits = (uint32_t)bits_at(p, formats[type].size);
    if (type == FSM_F16) {
        double sign = bits >> 15 ? -1 : 1, mantissa = bits & 1023;
        int exponent = bits >> 10 & 31;
        if (exponent == 31) return bits & 1023 ? (double)NAN : sign * (double)INFINITY;
        return sign * (exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24));
    }
    if (type == FSM_BF16) bits <<= 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

/* Kinds of numbers: ordinary, wide, huge, tiny, subnormal, 0, -inf (m), +inf (p), NaN, and any bits. */
static uint64_t number_of_kind(char kind, uint64_t r, fsm_type type) {
    const struct format f = formats[type];
    const uint64_t top = ((uint64_t)1 << f.exponent) - 1, bias = top / 2, some = r >> 56 & 15;
    const uint64_t exponent = kind == 'o'                                 ? bias - 5 + some / 2
                              : kind == 'w'                               ? bias - 2 + some % (bias + 2)
                              : kind == 'h'                               ? top - 1 - some / 4
                              : kind == 't'                               ? 1 + some / 2
                              : kind == 's' || kind == '0'                ? 0
                              : kind == 'm' || kind == 'p' || kind == 'n' ? top
                                                                          : r >> 53 & top;
    const uint64_t sign = kind == 'm' ? 1 : kind == 'p' ? 0 : r >> 63;
    uint64_t mantissa = r & (((uint64_t)1 << f.mantissa) - 1);
    if (kind == '0' || kind == 'm' || kind == 'p') mantissa = 0;
    if (kind == 'n') mantissa |= (uint64_t)1 << (f.mantissa - 1);
    return (sign << f.exponent | exponent) << f.mantissa | mantissa;
}

/* Numbers of kinds drawn from a mix; or one for all. */
static void fill(struct input *in, fsm_type type, char *p, size_t count, bool positive) {
    static const char *const mixes[] = {"oooooooo", "wwwwwwww", "oooooooo", "owowowom", "mmmmmmmo", "oooooono",
                                        "wwwwwwpw", "hhhhoooo", "ttssssss", "00oomwht", "oms0thpn", "????????",
                                        "mmmmmmmm", "wwwwoooh", "hhhhhhhh", "ssss0000"};
    const char *mix = mixes[choose(in, positive && !one_in(in, 16) ? 3 : 16)];
    const unsigned size = formats[type].size;
    const bool constant = one_in(in, 16);
    uint64_t first = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t r = draw(in), bits = number_of_kind(mix[r >> 32 & 7], r, type);
        if (positive) bits &= ~((uint64_t)1 << (8 * size - 1));
        if (!i) first = bits;
        memcpy(p + i * size, constant ? &first : &bits, size);
    }
}

/* ---- Arrays ---- */

struct array {
    size_t size, counts[3]; /* bytes of an element; outer, n, inner */
    ptrdiff_t strides[3];   /* in elements */
    char *memory, *copy;    /* all that may be touched, and what it was; NULL: there is no such array */
    char *first;            /* the element 0, 0, 0 */
    size_t bytes;
};

static char *element(const struct array *a, size_t o, size_t i, size_t k) {
    return a->first + ((ptrdiff_t)o * a->strides[0] + (ptrdiff_t)i * a->strides[1] + (ptrdiff_t)k * a->strides[2]) *
                          (ptrdiff_t)a->size;
}
/* The same before the call. */
static const char *old_element(const struct array *a, size_t o, size_t i, size_t k) {
    return a->copy + (element(a, o, i, k) - a->memory);
}

static void lay_out_densely(struct array *a) {
    if (!a->counts[0]) return;
    a->strides[2] = 1;
    a->strides[1] = (ptrdiff_t)a->counts[2];
    a->strides[0] = (ptrdiff_t)(a->counts[1] * a->counts[2]);
}

/* Dimensions in any order, with gaps, backwards, all on one element (if it is read only); far away, where it does not matter. */
static void lay_out(struct input *in, struct array *a, bool written) {
    static const unsigned char orders[][3] = {{2, 1, 0}, {1, 2, 0}, {1, 0, 2}, {0, 1, 2}, {2, 0, 1}, {0, 2, 1}};
    const unsigned char *order = orders[choose(in, 6)];
    const bool gaps = one_in(in, 3), signs = one_in(in, 4), zeros = !written && one_in(in, 3);
    ptrdiff_t step = gaps ? 1 + (ptrdiff_t)choose(in, 3) : 1;
    if (!a->counts[0] || !a->counts[1] || !a->counts[2]) return; /* the counts' product can be beyond all numbers */
    for (int d = 0; d < 3; d++) {
        const unsigned which = order[d];
        ptrdiff_t stride = step;
        step *= (ptrdiff_t)a->counts[which];
        if (gaps) step += (ptrdiff_t)choose(in, 4);
        if (zeros && one_in(in, 2)) stride = 0, step = step > 1 ? step : 1;
        if (a->counts[which] < 2 && one_in(in, 8)) stride = (ptrdiff_t)1 << 40;
        a->strides[which] = signs && one_in(in, 2) ? -stride : stride;
    }
}

/* Memory from the first byte to the last; some arrays begin after a few elements more. */
static void allocate(struct input *in, struct array *a) {
    ptrdiff_t low = 0, high = 0;
    for (int d = 0; d < 3; d++) {
        const ptrdiff_t reach = ((ptrdiff_t)a->counts[d] - 1) * a->strides[d]; /* 0 in an empty array */
        *(reach < 0 ? &low : &high) += reach;
    }
    if (a->counts[0] && a->counts[1] && a->counts[2])
        high++;
    else
        low = high = 0;
    const size_t before = one_in(in, 4) ? choose(in, 16) : 0;
    a->bytes = (before + (size_t)(high - low)) * a->size;
    a->memory = malloc(a->bytes);
    a->copy = malloc(a->bytes + 1);
    if (!a->memory || !a->copy) abort();
    a->first = a->memory + ((ptrdiff_t)before - low) * (ptrdiff_t)a->size;
}

static void keep_copy(struct array *a) { memcpy(a->copy, a->memory, a->bytes); }

#endif
