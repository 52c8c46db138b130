// Matrix products. Every element is one chain of fused multiply-adds, in the order of k, from its bias or zero: its
// bits depend neither on the tiles nor on the rows beside it.
#pragma once
#include "simd.h"

#define PADDED(n) (((n) + 15) / 16 * 16)  // whole vectors, and whole cache lines

// One Adam step uphill: theta += size m / (sqrt(v) + eps), with the moments from before this gradient (lagged) or
// after it.
typedef struct {
    float size, eps, beta1, beta2;
    int lagged;
} Adam;

// The same in registers: through a pointer, the numbers would be read again after every store.
typedef struct {
    vec size, eps, beta2, rest1, rest2;  // rest: 1 - beta
    int lagged;
} AdamVectors;

INLINE AdamVectors in_vectors(const Adam *a) {
    return (AdamVectors){all(a->size), all(a->eps), all(a->beta2), all(1 - a->beta1), all(1 - a->beta2), a->lagged};
}
INLINE void adam_vector(float *theta, float *m, float *v, vec g, AdamVectors adam) {
    vec m0 = load(m), v0 = load(v);
    vec m1 = mul_add(adam.rest1, sub(g, m0), m0), v1 = mul_add(adam.beta2, v0, mul(adam.rest2, mul(g, g)));
    vec by = inverse(add(root(adam.lagged ? v0 : v1), adam.eps));
    store(theta, mul_add(mul(adam.size, adam.lagged ? m0 : m1), by, load(theta)));
    store(m, m1);
    store(v, v1);
}

// What becomes of a product's elements: stored as they are, through tanh (quickly where no gradient follows), times
// 1 - activation^2, logits of pixels whose likelihood alone is wanted, or a gradient for Adam.
typedef enum { PLAIN, TANH, QUICK_TANH, TANH_BACKWARD, BERNOULLI, ADAM } Epilogue;
typedef struct {
    const float *activation;  // TANH_BACKWARD
    const uint8_t *bits;      // BERNOULLI: x, IMAGES images of PIXELS
    float *linear, *factors;  // and for each row a vector of both: log p is the total of linear - log(factors)
    float *m, *v;             // ADAM; the product's target is theta
    const Adam *adam;
} Extra;

// TALL rows by WIDE vectors of the target live in registers.
#if defined __AVX512F__
enum { TALL = 8, WIDE = 3 };
#else
enum { TALL = 4, WIDE = 3 };
#endif

static __attribute__((noinline)) void tanh_tile(int tall, int wide, float *out, long ldo) {
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < wide; j++) {
            float *at = out + i * ldo + WIDTH * j;
            store(at, hyperbolic_tangent(load(at)));
        }
}

static __attribute__((noinline)) void quick_tanh_tile(int tall, int wide, float *out, long ldo) {
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < wide; j++) {
            float *at = out + i * ldo + WIDTH * j;
            store(at, quick_tanh(load(at)));
        }
}
// log p = sum of x l - max(l, 0) - log(1 + e) with e = exp(-|l|); the product of 1 + e <= 2 cannot overflow.
static __attribute__((noinline)) void bernoulli_tile(int tall, int wide, const float *logits, long row, long pixel,
                                                     const Extra *extra) {
    for (int i = 0; i < tall; i++, row++) {
        const uint8_t *bits = extra->bits + row % IMAGES * (PIXELS / 8) + pixel / 8;
        vec linear = load(extra->linear + row * WIDTH), factors = load(extra->factors + row * WIDTH);
        for (int j = 0; j < wide; j++) {
            vec l = load(logits + (i * WIDE + j) * WIDTH);
            mask on = lanes_of_bits(bits + j * WIDTH / 8);
            linear = sub(choose(on, add(linear, l), linear), larger(all(0), l));
            factors = mul_add(factors, decay(l), factors);
        }
        store(extra->linear + row * WIDTH, linear), store(extra->factors + row * WIDTH, factors);
    }
}

static __attribute__((noinline)) void tanh_backward_tile(int tall, int wide, float *out, long ldo,
                                                         const float *activation) {
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < wide; j++) {
            long at = i * ldo + WIDTH * j;
            vec h = load(activation + at);
            store(out + at, mul(load(out + at), neg_mul_add(h, h, all(1))));
        }
}
static __attribute__((noinline)) void adam_tile(int tall, int wide, const float *gradient, float *theta, long ldo,
                                                const Extra *extra, long offset) {
    const AdamVectors adam = in_vectors(extra->adam);
    for (int i = 0; i < tall; i++)
        for (int j = 0; j < wide; j++) {
            long at = i * ldo + WIDTH * j;
            adam_vector(theta + at, extra->m + offset + at, extra->v + offset + at,
                        load(gradient + (i * WIDE + j) * WIDTH), adam);
        }
}

// The left operand is a matrix, rows `lda` apart, or, for Adam, packed by eights: element (i, k) at
// a[(i / 8) * 8 * K + 8 * k + i % 8]. With `words` both operands hold words of two bfloat16, and K counts words.
INLINE void tile(const int words, const int tall, const int wide, const Epilogue epilogue, long K, const float *a,
                 long lda, const float *b, long ldb, const float *bias, float *out, long ldo, const Extra *extra,
                 long offset) {
    const long column = epilogue == ADAM ? 8 : 1, row = epilogue == ADAM ? 1 : lda;
    vec sum[TALL][WIDE];
#pragma GCC unroll 8
    for (int i = 0; i < tall; i++)
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) sum[i][j] = bias ? load(bias + WIDTH * j) : all(0);
    for (long k = 0; k < K; k++) {
        vec own[WIDE];
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) own[j] = in_register(load(b + k * ldb + WIDTH * j));
#pragma GCC unroll 8
        for (int i = 0; i < tall; i++) {
            vec value = all(a[i * row + k * column]);
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++)
                sum[i][j] = words ? mul_add_words(value, own[j], sum[i][j]) : mul_add(value, own[j], sum[i][j]);
        }
    }
    // By way of memory, and what follows in functions of its own: else compilers spill the sums inside the loop above.
    float done[TALL * WIDE * WIDTH] __attribute__((aligned(64)));
    const int stored = epilogue != ADAM && epilogue != BERNOULLI;
    float *to = stored ? out : done;
    long ld = stored ? ldo : WIDE * WIDTH;
#pragma GCC unroll 8
    for (int i = 0; i < tall; i++)
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) store(to + i * ld + WIDTH * j, sum[i][j]);
    if (epilogue == TANH) tanh_tile(tall, wide, out, ldo);
    if (epilogue == QUICK_TANH) quick_tanh_tile(tall, wide, out, ldo);
    if (epilogue == BERNOULLI) bernoulli_tile(tall, wide, done, offset / ldo, offset % ldo, extra);
    if (epilogue == TANH_BACKWARD) tanh_backward_tile(tall, wide, out, ldo, extra->activation + offset);
    if (epilogue == ADAM) adam_tile(tall, wide, done, out, ldo, extra, offset);
}

// A matrix in panels: its first `panel_width` columns, row by row, then the next ones, so that tiles go through it in
// the order in which it lies in memory. `columns` are whole vectors; the panel begins with column j.
typedef struct {
    const float *at;
    long rows;
} Panels;
INLINE long panel_width(long columns, long j) {
    long vectors = (columns - j) / WIDTH;
    return WIDTH * (vectors == 4 || vectors == 2 ? 2 : vectors >= WIDE ? WIDE : 1);
}

// out[M, N] = bias[N] + a[M, K] b[K, N], N whole vectors. The bias is the last row of `biased`; that may be NULL.
// Adam's target is in panels, and b is not: its rows are `b.rows` floats apart.
INLINE void product(const int words, const Epilogue epilogue, long M, long N, long K, const float *a, long lda,
                    Panels b, const Panels *biased, float *out, long ldo, const Extra *extra) {
#define TILE(TALL, WIDE)                                                                                              \
    tile(words, TALL, WIDE, epilogue, K, own_a, lda, own_b, ldb, own_bias, out + offset, ld, extra, offset)
#define TILES(TALL) (width == 3 * WIDTH ? TILE(TALL, 3) : width == 2 * WIDTH ? TILE(TALL, 2) : TILE(TALL, 1))
    const int adam = epilogue == ADAM;
    for (long j = 0, width; j < N; j += width) {
        width = panel_width(N, j);
        const float *own_b = b.at + (adam ? j : j * b.rows);
        const float *own_bias = biased ? biased->at + j * biased->rows + (biased->rows - 1) * width : 0;
        const long ldb = adam ? b.rows : width, ld = adam ? width : ldo;
        for (long i = 0, tall; i < M; i += tall) {
            long rows = M - i, offset = adam ? j * M + i * width : i * ldo + j;
            const float *own_a = adam ? a + i / 8 * 8 * K + i % 8 : a + i * lda;
            tall = rows >= TALL ? TALL : rows >= 4 ? 4 : 1;
            if (tall == TALL) TILES(TALL);
            else if (tall == 4) TILES(4);
            else TILES(1);
        }
    }
#undef TILES
#undef TILE
}

// A function for each epilogue: inlined into its callers the tiles would be there many times.
#define PRODUCT(NAME, WORDS, EPILOGUE)                                                                                \
    static __attribute__((noinline)) void NAME(long M, long N, long K, const float *a, long lda, Panels b,            \
                                               const Panels *biased, float *out, long ldo, const Extra *extra) {      \
        product(WORDS, EPILOGUE, M, N, K, a, lda, b, biased, out, ldo, extra);                                        \
    }
PRODUCT(product_plain, 0, PLAIN)
PRODUCT(product_tanh, 0, TANH)
PRODUCT(product_quick_tanh, 0, QUICK_TANH)
PRODUCT(product_bernoulli, 0, BERNOULLI)
PRODUCT(product_tanh_backward, 0, TANH_BACKWARD)
PRODUCT(product_adam, 0, ADAM)
PRODUCT(product_words_plain, 1, PLAIN)
PRODUCT(product_words_tanh, 1, TANH)
PRODUCT(product_words_tanh_backward, 1, TANH_BACKWARD)
PRODUCT(product_words_adam, 1, ADAM)

// Words of bfloat16 of a matrix [rows, ld], ld whole cache lines: of neighbours in a row, [rows, ld / 2], or in a
// column, [(rows + 1) / 2, ld] (where `rows` is odd, the row after the last one is read).
static void words_in_rows(const float *from, long rows, long ld, float *to) {
    for (long i = 0; i < rows * ld; i += 2 * WIDTH)
        store(to + i / 2, as_float(words_of_neighbours(load(from + i), load(from + i + WIDTH))));
}
static void words_in_columns(const float *from, long rows, long ld, float *to) {
    for (long r = 0; r < rows; r += 2)
        for (long j = 0; j < ld; j += WIDTH)
            store(to + r / 2 * ld + j, as_float(words_of_two(load(from + r * ld + j), load(from + (r + 1) * ld + j))));
}

// to[j, i] = from[i, j], [rows, columns] to [columns, ldt]; what lies beyond the rows becomes zero.
static void transpose_matrix(const float *from, long rows, long columns, long ld, float *to, long ldt) {
    for (long i = 0; i < ldt; i += WIDTH)
        for (long j = 0; j < columns; j += WIDTH) {
            vec r[WIDTH];
            for (int k = 0; k < WIDTH; k++) r[k] = i + k < rows ? load(from + (i + k) * ld + j) : all(0);
            transpose(r);
            for (int k = 0; k < WIDTH; k++) store(to + (j + k) * ldt + i, r[k]);
        }
}
