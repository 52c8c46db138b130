// The training step of one run, any number of updates in one call: draws, forward pass, weights, backward pass, Adam.
// And its forward pass alone, any number of samples of some images in one call, for their likelihoods.
//
// The gradient is that of pipeline/models/log_weights.py, written for one run in float32. Rows are samples by images:
// row r holds sample r / IMAGES of image r % IMAGES. A block is in -> tanh -> tanh -> out; q1 .. qL and pL .. p1 are
// all blocks, mean and log_std of a Gaussian one are halves of its output. Every row of a matrix is padded to whole
// vectors.
//
// IMAGES (a batch) and PIXELS are defined by pipeline/models/compiled_step.py, which compiles and calls this.
#include <stdlib.h>
#include <string.h>

#include "draws.h"
#include "products.h"

enum { MOST_LAYERS = 2, SUMS = 5, TERMS = 4 };

// The estimator: each weight is a sum over (1 / T, w, w over all samples, M w^2) with these coefficients, where w is
// w^power normalized within a group of K, divided by M. `greatest`: w is 1 / M at the largest of a group alone.
// `bound`: of (ELBO, the groups' bound, IWAE over all samples).
typedef struct {
    float theta[TERMS], path[TERMS], score[TERMS], bound[3], power;
    int greatest;
} Estimator;

typedef struct {
    int layers, units[MOST_LAYERS], widths[MOST_LAYERS], M, K, forward_only;
    float scale;  // of every weight: 1, or 1 / IMAGES for the gradient of the mean
    float least;  // rows whose weights are all below it are left out of the backward pass
    int words_forward, words_backward;  // products but the first layer's are made of operands rounded to bfloat16
    Estimator estimator;
} Settings;

// Weights [in][ld], then bias [ld], in panels; the layer that takes pixels row by row.
typedef struct {
    long in, out, ld;
    int takes_pixels;
    float *weight, *m, *v;
} Dense;
typedef struct {
    Dense layer[3];
    float *hidden[2], *out, *d_out;
    int is_gaussian;
} Block;

typedef struct {
    Settings set;
    long T, rows, kept, padded_count, count;
    Block q[MOST_LAYERS], p[MOST_LAYERS];
    float *state[3];  // parameters and Adam's moments, padded
    float *active[MOST_LAYERS];  // forward only: 1 for units in the model, 0 for others
    float *eps[MOST_LAYERS], *h[MOST_LAYERS], *d_h[MOST_LAYERS], *std[MOST_LAYERS];
    float *d_prior;  // of log p(h1 | h2), in h1
    float *d_input, *delta[2], *transposed, *packed, *left_words, *right_words;
    float *log_w, *log_px, *w_theta, *w_path, *w_score, *w_doubled;
    float *drawn;  // forward only: the noise of an image
    float *linear, *factors;  // forward only: of log p(x | h1), a vector each for every row
    int *image;
    uint8_t bits[IMAGES * PIXELS / 8 + 8];
    uint32_t images_of_pixel[PIXELS + 1];  // a bit an image; the last, for the bias, has all
    double sums[SUMS];
    char *arena, *next;
} Model;

// ---------- memory: measured in a first pass, taken in a second ----------
static float *take(Model *s, long count) {
    float *here = (float *)s->next;
    s->next += (count * sizeof(float) + 127) / 64 * 64;
    return here;
}
static float *take_for_backward(Model *s, long count) { return s->set.forward_only ? NULL : take(s, count); }
static void lay_out_block(Model *s, Block *k, long rows, long in, long width, long out, int is_gaussian, long *at) {
    const long shape[3][2] = {{in, width}, {width, width}, {width, out}};
    k->is_gaussian = is_gaussian;
    for (int l = 0; l < 3; l++) {
        Dense *y = k->layer + l;
        y->in = shape[l][0], y->out = shape[l][1], y->ld = PADDED(y->out), y->takes_pixels = y->in == PIXELS;
        y->weight = s->state[0] + *at, y->m = s->state[1] + *at, y->v = s->state[2] + *at;
        *at += (y->in + 1) * y->ld;
        s->count += (y->in + 1) * y->out;
        if (l < 2) k->hidden[l] = take(s, rows * y->ld);
    }
    // Of pixels whose likelihood alone is wanted the logits are kept nowhere.
    k->out = is_gaussian ? take(s, rows * PADDED(out)) : take_for_backward(s, rows * PADDED(out));
    k->d_out = take_for_backward(s, rows * PADDED(out));
}
static int score_differs(const Estimator *e) { return memcmp(e->path, e->score, sizeof e->path) != 0; }
static void lay_out(Model *s) {
    const Settings *set = &s->set;
    int L = set->layers;
    long at = 0, R = s->rows, widest = 0;
    s->count = 0;
    s->state[0] = take(s, s->padded_count);
    for (int i = 1; i < 3; i++) s->state[i] = take_for_backward(s, s->padded_count);
    for (int l = 0; l < L; l++) {
        long u = set->units[l], below = l ? set->units[l - 1] : PIXELS;
        // Where path and score differ q2's rows go through it twice (see `second_encoder`).
        long rows = l ? R * (1 + score_differs(&set->estimator)) : IMAGES;
        lay_out_block(s, s->q + l, rows, below, set->widths[l], 2 * u, 1, &at);
        s->eps[l] = take(s, R * u + 4 * WIDTH), s->std[l] = take(s, R * PADDED(u));
        s->h[l] = take(s, 2 * R * PADDED(u)), s->d_h[l] = take_for_backward(s, 2 * R * PADDED(u));
        s->active[l] = set->forward_only ? take(s, PADDED(u)) : NULL;
        widest = widest > PADDED(u) ? widest : PADDED(u);
        widest = widest > PADDED(set->widths[l]) ? widest : PADDED(set->widths[l]);
    }
    for (int l = L - 1; l >= 0; l--)
        lay_out_block(s, s->p + l, R, set->units[l], set->widths[l], l ? 2 * set->units[l - 1] : PIXELS, l > 0, &at);
    s->padded_count = at;
    s->log_w = take(s, R + WIDTH), s->log_px = take(s, R + WIDTH);
    if (set->words_forward || set->words_backward)
        s->left_words = take(s, R * PIXELS / 2), s->right_words = take(s, (R + widest) * PIXELS / 2);
    if (set->forward_only) {
        s->drawn = take(s, s->T * widest + 4 + 4 * WIDTH);
        s->linear = take(s, R * WIDTH), s->factors = take(s, R * WIDTH);
        return;
    }
    s->d_prior = take(s, R * widest), s->d_input = take(s, 2 * R * widest);
    for (int i = 0; i < 2; i++) s->delta[i] = take(s, 2 * R * widest);
    s->transposed = take(s, PIXELS * widest), s->packed = take(s, (widest + 8) * 2 * R);
    s->w_theta = take(s, R + WIDTH), s->w_path = take(s, R + WIDTH), s->w_score = take(s, R + WIDTH);
    s->w_doubled = take(s, 2 * R), s->image = (int *)take(s, R);
}
void model_free(Model *s) {
    if (s) free(s->arena);
    free(s);
}
// NULL where there is not enough memory.
Model *model_new(const Settings *settings) {
    Model *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->set = *settings, s->T = (long)settings->M * settings->K, s->rows = s->T * IMAGES;
    lay_out(s);  // pointers from NULL on: for the sizes
    s->next = NULL;
    lay_out(s);
    size_t bytes = ((size_t)s->next + 63) / 64 * 64;
    s->arena = s->next = aligned_alloc(64, bytes);
    if (!s->arena) {
        free(s);
        return NULL;
    }
    memset(s->arena, 0, bytes);
    lay_out(s);
    return s;
}
int has_bfloat16(void) { return HAS_BFLOAT16; }
long model_count(const Model *s) { return s->count; }

// Elements of a layer, padded, to or from its heads in turn, each [in + 1, columns].
static void copy_layer(const Dense *y, float *padded, float *flat, long columns, int out_of) {
    for (long j = 0, width; j < y->out; j += width, padded += (y->in + 1) * width) {
        width = y->takes_pixels ? y->ld : panel_width(y->ld, j);
        for (long i = 0; i <= y->in; i++)
            for (long c = j; c < y->out && c < j + width; c++) {
                float *a = padded + i * width + c - j, *b = flat + (c / columns * (y->in + 1) + i) * columns + c % columns;
                *(out_of ? b : a) = *(out_of ? a : b);
            }
    }
}
// Between buffer `which` (0 parameters, 1 first, 2 second moment) and a row of `Parameters`, [count].
void model_copy(Model *s, int which, float *flat, int out_of) {
    int L = s->set.layers;
    for (int i = 0; i < 2 * L; i++) {
        const Block *k = i < L ? s->q + i : s->p + (2 * L - 1 - i);
        for (int l = 0; l < 3; l++) {
            const Dense *y = k->layer + l;
            float *padded = s->state[which] + (y->weight - s->state[0]);
            int heads = l == 2 && k->is_gaussian ? 2 : 1;
            copy_layer(y, padded, flat, y->out / heads, out_of);
            flat += (y->in + 1) * y->out;
        }
    }
}

// ---------- a layer: forward, back to its inputs, and into its weights with Adam ----------
static Panels panels_of(const Dense *y) { return (Panels){y->weight, y->in + 1}; }
static void forward(const Model *s, const Dense *y, const float *in, long ldi, float *out, long rows,
                    int through_tanh) {
    const Panels weights = panels_of(y);
    if (s->set.words_forward) {
        const Panels words = {s->right_words, (y->in + 1) / 2};
        words_in_rows(in, rows, ldi, s->left_words);
        for (long j = 0, width; j < y->ld; j += width) {
            width = panel_width(y->ld, j);
            words_in_columns(weights.at + j * weights.rows, y->in, width, s->right_words + j * words.rows);
        }
        (through_tanh ? product_words_tanh : product_words_plain)(rows, y->ld, words.rows, s->left_words, ldi / 2, words,
                                                                  &weights, out, y->ld, NULL);
        return;
    }
    (!through_tanh ? product_plain : s->set.forward_only ? product_quick_tanh : product_tanh)(
        rows, y->ld, y->in, in, ldi, weights, &weights, out, y->ld, NULL);
}
// `activation`: what the inputs are, if they come out of a tanh. A panel of inputs is transposed and used at once,
// while the second cache has it.
static void to_inputs(Model *s, const Dense *y, const float *d_out, float *d_in, long rows, const float *activation) {
    const int words = s->set.words_backward;
    const long ld = PADDED(y->in), pairs = (y->out + 1) / 2;
    if (words) words_in_rows(d_out, rows, y->ld, s->left_words);
    for (long i = 0, width; i < ld; i += width) {
        width = panel_width(ld, i);
        for (long j = 0, columns; j < y->ld; j += columns) {
            columns = panel_width(y->ld, j);
            transpose_matrix(y->weight + j * (y->in + 1) + i * columns, y->in - i, columns, columns,
                             s->transposed + j * width, width);
        }
        Extra extra = {.activation = activation ? activation + i : NULL};
        if (words) {
            words_in_columns(s->transposed, y->out, width, s->right_words);
            (activation ? product_words_tanh_backward : product_words_plain)(
                rows, width, pairs, s->left_words, y->ld / 2, (Panels){s->right_words, pairs}, NULL, d_in + i, ld, &extra);
        } else
            (activation ? product_tanh_backward : product_plain)(
                rows, width, y->out, d_out, y->ld, (Panels){s->transposed, y->out}, NULL, d_in + i, ld, &extra);
    }
}
// The left operand of a weight gradient in words of two rows, by eights of inputs; the last input is the bias. Where
// `rows` is odd, the row after the last one has weight zero.
static void pack_words(float *packed, const float *in, long ldi, long inputs, const float *weight, long rows) {
    const long pairs = (rows + 1) / 2;
    for (long r = 0; r < rows; r += 2) {
        vec w0 = all(weight ? weight[r] : 1), w1 = all(r + 1 == rows ? 0 : weight ? weight[r + 1] : 1);
        float words[WIDTH] __attribute__((aligned(64)));
        for (long i = 0; i < inputs; i += WIDTH) {
            const float *at = in + r * ldi + i;
            store(words, as_float(words_of_two(mul(w0, load(at)), mul(w1, load(at + ldi)))));
            for (long g = 0; g < WIDTH; g += 8) memcpy(packed + (i + g) * pairs + 4 * r, words + g, 8 * sizeof(float));
        }
        store(words, as_float(words_of_two(w0, w1)));
        packed[inputs / 8 * 8 * pairs + 4 * r + inputs % 8] = words[0];
    }
}
// The bias is one more input, which is always one. `weight`: each row's, or NULL for ones.
static void to_weights(Model *s, Dense *y, const float *in, long ldi, const float *d_out, const float *weight,
                       long rows, const Adam *adam) {
    Extra extra = {.m = y->m, .v = y->v, .adam = adam};
    if (s->set.words_backward) {
        pack_words(s->packed, in, ldi, y->in, weight, rows);
        words_in_columns(d_out, rows, y->ld, s->right_words);
        product_words_adam(y->in + 1, y->ld, (rows + 1) / 2, s->packed, 0, (Panels){s->right_words, y->ld}, NULL,
                           y->weight, 0, &extra);
        return;
    }
    float *packed = s->packed;
    for (long r = 0; r < rows; r++) {
        __m256 w = _mm256_set1_ps(weight ? weight[r] : 1);
        for (long i = 0; i < y->in; i += 8)
            _mm256_storeu_ps(packed + i * rows + 8 * r, _mm256_mul_ps(w, _mm256_loadu_ps(in + r * ldi + i)));
    }
    for (long r = 0; r < rows; r++) packed[y->in / 8 * 8 * rows + 8 * r + y->in % 8] = weight ? weight[r] : 1;
    product_adam(y->in + 1, y->ld, rows, packed, 0, (Panels){d_out, y->ld}, NULL, y->weight, 0, &extra);
}

// ---------- the first layer: its inputs are 0 or 1, so its products are sums of rows ----------
enum { PANEL = 13 };  // vectors of a row summed in registers: 200 units are one panel of AVX-512, two of AVX2
#define SUM_ROWS(N)                                                                                                   \
    vec sum[N];                                                                                                       \
    _Pragma("GCC unroll 13") for (int j = 0; j < N; j++) sum[j] = start ? load(start + WIDTH * j) : all(0);           \
    for (int c = 0; c < count; c++) {                                                                                 \
        const float *row = rows[c];                                                                                   \
        _Pragma("GCC unroll 13") for (int j = 0; j < N; j++) sum[j] = add(sum[j], load(row + at + WIDTH * j));        \
    }                                                                                                                 \
    _Pragma("GCC unroll 13") for (int j = 0; j < N; j++) store(out + WIDTH * j, sum[j]);

static void sum_panel(const float *const *rows, int count, long at, const float *start, float *out) { SUM_ROWS(PANEL) }
static void sum_vector(const float *const *rows, int count, long at, const float *start, float *out) { SUM_ROWS(1) }
static void sum_rows(const float *const *rows, int count, long ld, const float *start, float *out) {
    long at = 0;
    for (; at + PANEL * WIDTH <= ld; at += PANEL * WIDTH)
        sum_panel(rows, count, at, start ? start + at : NULL, out + at);
    for (; at < ld; at += WIDTH) sum_vector(rows, count, at, start ? start + at : NULL, out + at);
}
static void first_forward(const Model *s, const Dense *y, float *out) {
    const float *rows[PIXELS];
    for (long b = 0; b < IMAGES; b++) {
        int count = 0;
        for (long c = 0; c < PIXELS / 8; c++)
            for (unsigned left = s->bits[b * PIXELS / 8 + c]; left; left &= left - 1)
                rows[count++] = y->weight + (8 * c + __builtin_ctz(left)) * y->ld;
        float *own = out + b * y->ld;
        sum_rows(rows, count, y->ld, y->weight + PIXELS * y->ld, own);
        for (long j = 0; j < y->ld; j += WIDTH) store(own + j, hyperbolic_tangent(load(own + j)));
    }
}
static void first_to_weights(const Model *s, Dense *y, const float *d_out, const Adam *adam) {
    const float *rows[IMAGES];
    float gradient[y->ld] __attribute__((aligned(64)));
    const AdamVectors vectors = in_vectors(adam);
    for (long i = 0; i <= PIXELS; i++) {
        int count = 0;
        for (uint32_t left = s->images_of_pixel[i]; left; left &= left - 1)
            rows[count++] = d_out + __builtin_ctz(left) * y->ld;
        sum_rows(rows, count, y->ld, NULL, gradient);
        for (long j = 0; j < y->ld; j += WIDTH) {
            long at = i * y->ld + j;
            adam_vector(y->weight + at, y->m + at, y->v + at, load(gradient + j), vectors);
        }
    }
}
static void list_images_of_pixels(Model *s) {
    for (long j = 0; j < PIXELS; j += WIDTH) {
        ivec images = int_all(0);
        for (long b = 0; b < IMAGES; b++) {
            mask on = lanes_of_bits(s->bits + (b * PIXELS + j) / 8);
            images = int_xor(images, as_int(choose(on, as_float(int_all(1 << b)), all(0))));
        }
        store((float *)s->images_of_pixel + j, as_float(images));
    }
    s->images_of_pixel[PIXELS] = (1u << IMAGES) - 1;
}

// ---------- a block; `in` NULL: the images ----------
static void block_forward(const Model *s, Block *k, const float *in, long ldi, long rows) {
    const Dense *y = k->layer;
    if (in) forward(s, y, in, ldi, k->hidden[0], rows, 1);
    else first_forward(s, y, k->hidden[0]);
    forward(s, y + 1, k->hidden[0], y[0].ld, k->hidden[1], rows, 1);
    if (k->out) forward(s, y + 2, k->hidden[1], y[1].ld, k->out, rows, 0);
}
// Adam changes a layer after the gradient has gone back through it.
static void block_backward(Model *s, Block *k, long rows, const float *in, long ldi, const float *d_out,
                           const float *weight, float *d_in, const Adam *adam) {
    Dense *y = k->layer;
    to_inputs(s, y + 2, d_out, s->delta[1], rows, k->hidden[1]);
    to_weights(s, y + 2, k->hidden[1], y[1].ld, d_out, weight, rows, adam);
    to_inputs(s, y + 1, s->delta[1], s->delta[0], rows, k->hidden[0]);
    to_weights(s, y + 1, k->hidden[0], y[0].ld, s->delta[1], weight, rows, adam);
    if (!in) {
        first_to_weights(s, y, s->delta[0], adam);
        return;
    }
    to_inputs(s, y, s->delta[0], d_in, rows, NULL);
    to_weights(s, y, in, ldi, s->delta[0], weight, rows, adam);
}

// ---------- samples, densities ----------
#define OVER_UNITS(u) for (long j = 0; j < (u); j += WIDTH)

// Those of units j ... j + WIDTH - 1 of layer l that are in the model.
INLINE mask units_from(const Model *s, int l, long j) {
    mask units = first_lanes(s->set.units[l] - j);
    return s->active[l] ? less(all(0), load_lanes(units, s->active[l] + j)) : units;
}

// h = mean + std eps of layer l, and log w's part of it: -log q, and where l is the top also the log prior.
static void sample(Model *s, int l) {
    long u = s->set.units[l], ld = PADDED(u), ldo = s->q[l].layer[2].ld;
    for (long r = 0; r < s->rows; r++) {
        long own = l ? r : r % IMAGES;
        const float *out = s->q[l].out + own * ldo;
        float *std = s->std[l] + r * ld;
        vec terms = all(0);
        OVER_UNITS(u) {
            mask units = units_from(s, l, j);
            vec log_std = load_lanes(units, out + u + j), e = load_lanes(units, s->eps[l] + r * u + j);
            store(std + j, own == r ? exponential(log_std) : load(s->std[l] + own * ld + j));
            vec h = choose(units, mul_add(e, load(std + j), load_lanes(units, out + j)), all(0));
            store(s->h[l] + r * ld + j, h);
            terms = add(terms, mul_add(mul(all(0.5f), e), e, log_std));
            if (l == s->set.layers - 1) terms = neg_mul_add(mul(all(0.5f), h), h, terms);
        }
        s->log_w[r] = (l ? s->log_w[r] : 0) + total(terms);
    }
}
// log p(h_l | h_(l+1)), and its gradients in h_l and in the outputs of p_(l+1).
static void weigh_under_prior(Model *s, int l) {
    Block *k = s->p + l + 1;
    long u = s->set.units[l], ld = PADDED(u), ldo = k->layer[2].ld;
    for (long r = 0; r < s->rows; r++) {
        const float *out = k->out + r * ldo, *h = s->h[l] + r * ld;
        float *d_mean = k->d_out + r * ldo, *d_log_std = d_mean + u;
        vec terms = all(0);
        OVER_UNITS(u) {
            mask units = units_from(s, l, j);
            vec log_std = load_lanes(units, out + u + j), by_std = exponential(sub(all(0), log_std));
            vec z = mul(sub(load_lanes(units, h + j), load_lanes(units, out + j)), by_std), d = mul(z, by_std);
            terms = sub(neg_mul_add(mul(all(0.5f), z), z, terms), log_std);
            if (s->set.forward_only) continue;
            store(s->d_prior + r * ld + j, d);
            store_lanes(units, d_mean + j, d);
            store_lanes(units, d_log_std + j, mul_sub(z, z, all(1)));
        }
        s->log_w[r] += total(terms);
    }
}
// log p(x | logits), as of `bernoulli_tile`; the logits become x - sigmoid(logits).
static void bernoulli(Model *s, float *logits) {
    for (long r = 0; r < s->rows; r++) {
        float *l = logits + r * PIXELS;
        const uint8_t *bits = s->bits + r % IMAGES * (PIXELS / 8);
        vec linear = all(0), factors = all(1);
        for (long j = 0; j < PIXELS; j += WIDTH) {
            vec v = load(l + j), e = exponential(with_sign(v, all(-0.0f))), one_and_e = add(all(1), e);
            mask on = lanes_of_bits(bits + j / 8), positive = less(all(0), v);
            linear = sub(choose(on, add(linear, v), linear), larger(all(0), v));
            factors = mul(factors, one_and_e);
            vec sigmoid = mul(choose(positive, all(1), e), inverse(one_and_e));
            store(l + j, sub(choose(on, all(1), all(0)), sigmoid));
        }
        s->log_px[r] = total(sub(linear, logarithm(factors)));
    }
}
// The same from the hidden units, for the likelihood alone.
static void bernoulli_of_hidden(Model *s) {
    const Dense *y = s->p[0].layer + 2;
    Extra extra = {.bits = s->bits, .linear = s->linear, .factors = s->factors};
    for (long r = 0; r < s->rows; r++) store(s->linear + r * WIDTH, all(0)), store(s->factors + r * WIDTH, all(1));
    const Panels weights = panels_of(y);
    product_bernoulli(s->rows, y->ld, y->in, s->p[0].hidden[1], y[-1].ld, weights, &weights, NULL, y->ld, &extra);
    for (long r = 0; r < s->rows; r++)
        s->log_px[r] = total(sub(load(s->linear + r * WIDTH), logarithm(load(s->factors + r * WIDTH))));
}

// ---------- weights ----------
INLINE vec combined(const float c[TERMS], vec uniform, vec w, vec over_all, vec squared) {
    return mul_add(all(c[0]), uniform, mul_add(all(c[1]), w, mul_add(all(c[2]), over_all, mul(all(c[3]), squared))));
}
// Each sample's three weights, not scaled yet, and the sums of the history; vectors run over images.
static void weigh(Model *s) {
    const long T = s->T, K = s->set.K, M = s->set.M;
    const Estimator *e = &s->set.estimator;
    const vec uniform = all(1.0f / (float)T), power = all(e->power), tiny = all(-3e38f);
    float *exp_all = s->w_score, *exp_group = s->w_path;
    double sums[SUMS - 1] = {0};
    for (long b = 0; b < IMAGES; b += WIDTH) {
        mask lanes = first_lanes(IMAGES - b);
        vec top = tiny, elbo = all(0), reconstruction = all(0), sum_all = all(0), bound = all(0);
        for (long t = 0; t < T; t++) {
            long r = t * IMAGES + b;
            vec px = load_lanes(lanes, s->log_px + r), log_w = add(load_lanes(lanes, s->log_w + r), px);
            store_lanes(lanes, s->log_w + r, log_w);
            top = larger(top, log_w), elbo = add(elbo, log_w), reconstruction = add(reconstruction, px);
        }
        for (long t = 0; t < T; t++) {
            vec own = exponential(sub(load_lanes(lanes, s->log_w + t * IMAGES + b), top));
            store_lanes(lanes, exp_all + t * IMAGES + b, own);
            sum_all = add(sum_all, own);
        }
        vec by_all = divide(all(1), sum_all);
        for (long g = 0; g < M; g++) {
            vec most = tiny, sum = all(0);
            mask found = no_lanes();
            for (long t = g * K; t < (g + 1) * K; t++)
                most = larger(most, mul(power, load_lanes(lanes, s->log_w + t * IMAGES + b)));
            for (long t = g * K; t < (g + 1) * K; t++) {
                vec powered = mul(power, load_lanes(lanes, s->log_w + t * IMAGES + b)), own;
                if (e->greatest) {
                    mask here = without(equal(powered, most), found);
                    found = either(found, here);
                    own = choose(here, all(1), all(0));
                } else own = exponential(sub(powered, most));
                store_lanes(lanes, exp_group + t * IMAGES + b, own);
                sum = add(sum, own);
            }
            vec group = e->greatest ? most : divide(add(most, logarithm(divide(sum, all((float)K)))), power);
            bound = add(bound, group);
            vec by_group = divide(all(1), mul(sum, all((float)M)));
            for (long t = g * K; t < (g + 1) * K; t++) {
                long r = t * IMAGES + b;
                vec w = mul(load_lanes(lanes, exp_group + r), by_group);
                vec over_all = mul(load_lanes(lanes, exp_all + r), by_all), squared = mul(mul(all((float)M), w), w);
                store_lanes(lanes, s->w_theta + r, combined(e->theta, uniform, w, over_all, squared));
                store_lanes(lanes, s->w_path + r, combined(e->path, uniform, w, over_all, squared));
                store_lanes(lanes, s->w_score + r, combined(e->score, uniform, w, over_all, squared));
            }
        }
        elbo = mul(elbo, uniform), bound = mul(bound, all(1.0f / (float)M));
        vec iwae = add(top, logarithm(mul(sum_all, uniform)));
        bound = mul_add(all(e->bound[0]), elbo, mul_add(all(e->bound[1]), bound, mul(all(e->bound[2]), iwae)));
        const vec columns[SUMS - 1] = {bound, elbo, iwae, mul(reconstruction, uniform)};
        for (int i = 0; i < SUMS - 1; i++) sums[i] += total(choose(lanes, columns[i], all(0)));
    }
    for (int i = 0; i < SUMS - 1; i++) s->sums[i] += sums[i] / IMAGES;
}

// ---------- rows that do not count ----------
static void move_row(float *rows, long ld, long to, long from) {
    memcpy(rows + to * ld, rows + from * ld, ld * sizeof(float));
}
static void move_sample(Model *s, long to, long from) {
    for (int l = 0; l < s->set.layers; l++) {
        Block *above[2] = {s->p + l, l ? s->q + l : NULL};
        for (int i = 0; i < 2 && above[i]; i++)
            for (int k = 0; k < 2; k++) move_row(above[i]->hidden[k], above[i]->layer[k].ld, to, from);
        move_row(l ? s->p[l].d_out : s->p[0].out, s->p[l].layer[2].ld, to, from);
        long u = s->set.units[l], ld = PADDED(u);
        move_row(s->h[l], ld, to, from), move_row(s->std[l], ld, to, from), move_row(s->eps[l], u, to, from);
        if (l + 1 < s->set.layers) move_row(s->d_prior, ld, to, from);
    }
    s->w_theta[to] = s->w_theta[from], s->w_path[to] = s->w_path[from], s->w_score[to] = s->w_score[from];
}
static int counts(const Model *s, long r) {  // also where a weight is NaN
    float least = s->set.least, path = s->w_path[r], rest = path - s->w_score[r];
    return !(__builtin_fabsf(s->w_theta[r]) < least && __builtin_fabsf(path) < least && __builtin_fabsf(rest) < least);
}
// Moves the rows that the gradient needs to the front; the last ones fill up tiles of eight.
static void keep_rows_that_count(Model *s) {
    long n = 0;
    for (long r = 0; r < s->rows; r++) {
        if (!counts(s, r) && s->rows - r > (8 - n % 8) % 8) continue;
        s->image[n] = (int)(r % IMAGES);
        if (n != r) move_sample(s, n, r);
        s->w_theta[n] *= s->set.scale, s->w_path[n] *= s->set.scale, s->w_score[n] *= s->set.scale;
        n++;
    }
    s->kept = n;
    s->sums[SUMS - 1] += (double)n / (double)s->rows;
}

// ---------- encoders, backward ----------
// From d log w / d h_1 to the outputs of q1, summed over an image's samples. With h = mean + std eps, log q's path and
// score parts cancel but for d / d log_std = 1; where an estimator weighs them differently the rest is (path - score)
// times the path part of -log q.
static void first_encoder(Model *s, const Adam *adam) {
    Block *k = s->q;
    long u = s->set.units[0], ld = PADDED(u), ldo = k->layer[2].ld;
    memset(k->d_out, 0, IMAGES * ldo * sizeof(float));
    for (long r = 0; r < s->kept; r++) {
        float *d_mean = k->d_out + s->image[r] * ldo, *d_log_std = d_mean + u;
        vec path = all(s->w_path[r]), rest = all(s->w_path[r] - s->w_score[r]);
        OVER_UNITS(u) {
            mask tail = first_lanes(u - j);
            vec d = load_lanes(tail, s->d_h[0] + r * ld + j), std = load(s->std[0] + r * ld + j);
            vec e = load_lanes(tail, s->eps[0] + r * u + j);
            vec mean = mul_add(path, d, load_lanes(tail, d_mean + j));
            vec log_std = mul_add(path, mul_add(mul(d, std), e, all(1)), load_lanes(tail, d_log_std + j));
            store_lanes(tail, d_mean + j, mul_add(rest, mul(e, inverse(std)), mean));
            store_lanes(tail, d_log_std + j, mul_add(rest, mul_sub(e, e, all(1)), log_std));
        }
    }
    block_backward(s, k, IMAGES, NULL, 0, k->d_out, NULL, NULL, adam);
}
// The same of q2, row by row. The gradient in h1 goes on unweighted, so that the rest, which has a weight of its own,
// cannot join it: it follows in as many rows again, which only meet the parameters.
static void second_encoder(Model *s, int l, const Adam *adam) {
    Block *k = s->q + l;
    const int twice = score_differs(&s->set.estimator);
    long u = s->set.units[l], ld = PADDED(u), ldo = k->layer[2].ld, n = s->kept, ldi = PADDED(s->set.units[l - 1]);
    float *weight = twice ? s->w_doubled : s->w_path;
    for (long r = 0; r < n; r++) {
        float *d_mean = k->d_out + r * ldo, *d_log_std = d_mean + u, rest = s->w_path[r] - s->w_score[r];
        OVER_UNITS(u) {
            mask tail = first_lanes(u - j);
            vec d = load_lanes(tail, s->d_h[l] + r * ld + j), std = load(s->std[l] + r * ld + j);
            vec e = load_lanes(tail, s->eps[l] + r * u + j);
            store_lanes(tail, d_mean + j, d);
            store_lanes(tail, d_log_std + j, mul_add(mul(d, std), e, all(1)));
            if (!twice) continue;
            store_lanes(tail, d_mean + n * ldo + j, mul(e, inverse(std)));
            store_lanes(tail, d_log_std + n * ldo + j, mul_sub(e, e, all(1)));
        }
        if (twice) weight[r] = s->w_path[r], weight[n + r] = rest;
    }
    if (twice) {
        for (int i = 0; i < 2; i++)
            memcpy(k->hidden[i] + n * k->layer[i].ld, k->hidden[i], n * k->layer[i].ld * sizeof(float));
        memcpy(s->h[l - 1] + n * ldi, s->h[l - 1], n * ldi * sizeof(float));
    }
    block_backward(s, k, n * (1 + twice), s->h[l - 1], ldi, k->d_out, weight, s->d_input, adam);
    float *d = s->d_h[l - 1];
    for (long i = 0; i < n * ldi; i += WIDTH) store(d + i, add(load(d + i), load(s->d_input + i)));
}
static void subtract(float *from, const float *what, long count) {
    for (long i = 0; i < count; i += WIDTH) store(from + i, sub(load(from + i), load(what + i)));
}

// ---------- the update ----------
// From q1's outputs on: samples, log w but for log p(x | h1), and the logits or what they are made of.
static void through_layers(Model *s) {
    const int *units = s->set.units, L = s->set.layers;
    for (int l = 0; l < L; l++) {
        if (l) block_forward(s, s->q + l, s->h[l - 1], PADDED(units[l - 1]), s->rows);
        sample(s, l);
    }
    for (int l = L - 1; l >= 0; l--) {
        block_forward(s, s->p + l, s->h[l], PADDED(units[l]), s->rows);
        if (l) weigh_under_prior(s, l - 1);
    }
}
static void update(Model *s, const Adam *adam) {
    const int L = s->set.layers;
    const int *units = s->set.units;
    block_forward(s, s->q, NULL, 0, IMAGES);
    through_layers(s);
    bernoulli(s, s->p[0].out);
    weigh(s);
    keep_rows_that_count(s);
    for (int l = 0; l < L; l++) {
        long ld = PADDED(units[l]);
        block_backward(s, s->p + l, s->kept, s->h[l], ld, l ? s->p[l].d_out : s->p[0].out, s->w_theta, s->d_h[l], adam);
        subtract(s->d_h[l], l < L - 1 ? s->d_prior : s->h[l], s->kept * ld);
    }
    for (int l = L - 1; l > 0; l--) second_encoder(s, l, adam);
    first_encoder(s, adam);
}

// `steps` updates from number `position` on. `images`: [., PIXELS] grey; `order`: [steps, IMAGES], which images each
// takes; `sizes`, `eps`: Adam's, of each; `keys`: binarization's, then each layer's noise. `sums` [SUMS] is added to.
void model_advance(Model *s, long steps, uint64_t position, const uint8_t *images, const int64_t *order,
                   const float *sizes, const float *eps, float beta1, float beta2, int lagged, const uint32_t *keys,
                   double *sums) {
    memset(s->sums, 0, sizeof s->sums);
    for (long n = 0; n < steps; n++, position++) {
        const uint8_t *rows[IMAGES];
        for (long b = 0; b < IMAGES; b++) rows[b] = images + order[n * IMAGES + b] * PIXELS;
        draw_bits(s->bits, rows, position, keys);
        list_images_of_pixels(s);
        for (int l = 0; l < s->set.layers; l++)
            draw_normal(s->eps[l], 0, s->rows * s->set.units[l], position, keys + 2 + 2 * l);
        Adam adam = {sizes[n], eps[n], beta1, beta2, lagged};
        update(s, &adam);
    }
    for (int i = 0; i < SUMS; i++) sums[i] += s->sums[i];
}

// ---------- log-weights alone, of a model that is `forward_only` ----------
// `active` [units of all layers]: 1 for units in the model, 0 for those taken out of it.
void model_activate(Model *s, const float *active) {
    for (int l = 0; l < s->set.layers; active += s->set.units[l++])
        memcpy(s->active[l], active, s->set.units[l] * sizeof(float));
}
// The images that log-weights are then asked for, [IMAGES, PIXELS] in {0, 1}.
void model_encode(Model *s, const float *x) {
    for (long i = 0; i < (long)IMAGES * PIXELS; i += WIDTH) store_bits(s->bits + i / 8, less(all(0.5f), load(x + i)));
    block_forward(s, s->q, NULL, 0, IMAGES);
}
// log w [samples, IMAGES] of samples first ... first + samples - 1. Image b's samples in layer l are the draw of index
// numbers[b] in the stream of key l: element s units + u is unit u of sample s.
void model_log_weights(Model *s, const int64_t *numbers, long first, long samples, const uint32_t *keys, float *log_w) {
    for (long done = 0, own; done < samples; done += own) {
        own = samples - done < s->T ? samples - done : s->T;
        s->rows = own * IMAGES;
        for (int l = 0; l < s->set.layers; l++) {
            long u = s->set.units[l], from = (first + done) * u, skipped = from % 4;
            for (long b = 0; b < IMAGES; b++) {
                draw_normal(s->drawn, from - skipped, own * u + skipped, (uint64_t)numbers[b], keys + 2 * l);
                for (long t = 0; t < own; t++)
                    memcpy(s->eps[l] + (t * IMAGES + b) * u, s->drawn + skipped + t * u, u * sizeof(float));
            }
        }
        through_layers(s);
        bernoulli_of_hidden(s);
        for (long r = 0; r < s->rows; r++) log_w[done * IMAGES + r] = s->log_w[r] + s->log_px[r];
    }
}

// For the tests of the draws; `out` holds 4 WIDTH - 1 numbers more than `count`.
void normal_numbers(float *out, long count, uint64_t index, const uint32_t *key) {
    draw_normal(out, 0, count, index, key);
}
