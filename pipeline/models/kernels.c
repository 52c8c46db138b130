// Products and elementwise passes of a training step on one core. Compiled on first use by pipeline/models/kernels.py;
// pipeline/models/products.py and kernels.py hold what each one computes in torch. Matrices are row-major.

#include <math.h>
#include <stdint.h>
#include <string.h>

// The register tile of a product: ROWS rows by 3 vectors of WIDTH columns, for the registers that there are.
#if defined(__AVX512F__)
#define WIDTH 16
#define ROWS 8
#elif defined(__AVX__)
#define WIDTH 8
#define ROWS 4
#else
#define WIDTH 4
#define ROWS 8
#endif
typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4)));

#define LANES 16

// exp(x) for x <= 0, within 2 units in the last place; below -87 the smallest normal number.
static inline float exp_nonpositive(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = (float)(int32_t)(x * 1.44269504f - 0.5f);  // truncation rounds to nearest: the argument is negative
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    float value = p * r * r + r + 1.0f;
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits += (int32_t)n << 23;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// log_px[t, b] = sum_j x[b, j] logits[t, b, j] - softplus(logits[t, b, j]).
// Where residual is not NULL: residual[t, b, j] = x[b, j] - sigmoid(logits[t, b, j]); it may be logits itself.
// softplus(l) = max(l, 0) + log(1 + exp(-|l|)): the logarithms of a row are taken of products of at most 64 factors
// in (1, 2], so that one logarithm serves many pixels.
void bernoulli(const float *logits, const float *x, float *log_px, float *residual, int64_t samples, int64_t images,
               int64_t pixels) {
    for (int64_t row = 0; row < samples * images; row++) {
        const float *l = logits + row * pixels;
        const float *target = x + (row % images) * pixels;
        float *out = residual ? residual + row * pixels : 0;
        float linear[LANES] = {0}, total = 0;
        for (int64_t start = 0; start < pixels; start += 64 * LANES) {
            float product[LANES];
            for (int k = 0; k < LANES; k++) product[k] = 1;
            int64_t end = start + 64 * LANES < pixels ? start + 64 * LANES : pixels;
            int64_t j = start;
            for (; j + LANES <= end; j += LANES) {
                for (int k = 0; k < LANES; k++) {
                    float value = l[j + k], t = target[j + k];
                    float e = exp_nonpositive(-fabsf(value));
                    float positive = value > 0 ? value : 0;
                    linear[k] += t * value - positive;
                    product[k] *= 1 + e;
                    if (out) out[j + k] = t - (value > 0 ? 1 : e) / (1 + e);
                }
            }
            for (; j < end; j++) {
                float value = l[j], t = target[j];
                float e = exp_nonpositive(-fabsf(value));
                linear[0] += t * value - (value > 0 ? value : 0);
                product[0] *= 1 + e;
                if (out) out[j] = t - (value > 0 ? 1 : e) / (1 + e);
            }
            for (int k = 0; k < LANES; k++) total -= logf(product[k]);
        }
        for (int k = 0; k < LANES; k++) total += linear[k];
        log_px[row] = total;
    }
}

// c[i, j] = bias[j] + sum_k a[i, k] b[k, j] for a tile of c; a has strides `row` and `step`.
#define TILE(NAME, HEIGHT, VECTORS)                                                                                    \
    static void NAME(int64_t depth, const float *a, int64_t row, int64_t step, const float *b, const float *bias,      \
                     float *c, int64_t width) {                                                                        \
        vec sum[HEIGHT][VECTORS];                                                                                      \
        for (int i = 0; i < HEIGHT; i++)                                                                               \
            for (int j = 0; j < VECTORS; j++) sum[i][j] = bias ? *(const vec *)(bias + WIDTH * j) : (vec){0};          \
        for (int64_t k = 0; k < depth; k++) {                                                                          \
            vec own[VECTORS];                                                                                          \
            _Pragma("GCC unroll 4") for (int j = 0; j < VECTORS; j++)                                                  \
                own[j] = *(const vec *)(b + k * width + WIDTH * j);                                                    \
            _Pragma("GCC unroll 8") for (int i = 0; i < HEIGHT; i++) {                                                 \
                float value = a[i * row + k * step];                                                                   \
                _Pragma("GCC unroll 4") for (int j = 0; j < VECTORS; j++) sum[i][j] += value * own[j];                 \
            }                                                                                                          \
        }                                                                                                              \
        for (int i = 0; i < HEIGHT; i++)                                                                               \
            for (int j = 0; j < VECTORS; j++) *(vec *)(c + i * width + WIDTH * j) = sum[i][j];                         \
    }
TILE(tile_tall_wide, ROWS, 3)
TILE(tile_tall, ROWS, 1)
TILE(tile_wide, 4, 3)
TILE(tile, 4, 1)
TILE(tile_row_wide, 1, 3)
TILE(tile_row, 1, 1)

// c = bias + a b with a [height, depth] of strides `row` and `step`, b [depth, width], bias [width] or NULL.
// width must be at least WIDTH: the last vector of columns overlaps its neighbour where WIDTH does not divide width.
static void multiply(int64_t height, int64_t width, int64_t depth, const float *a, int64_t row, int64_t step,
                     const float *b, const float *bias, float *c) {
    for (int64_t j = 0; j < width;) {
        int wide = j + 3 * WIDTH <= width;
        int64_t left = wide || j + WIDTH <= width ? j : width - WIDTH;
        const float *own_b = b + left, *own_bias = bias ? bias + left : 0;
        int64_t i = 0;
        for (; i + ROWS <= height; i += ROWS)
            (wide ? tile_tall_wide : tile_tall)(depth, a + i * row, row, step, own_b, own_bias, c + i * width + left, width);
        for (; i + 4 <= height; i += 4)
            (wide ? tile_wide : tile)(depth, a + i * row, row, step, own_b, own_bias, c + i * width + left, width);
        for (; i < height; i++)
            (wide ? tile_row_wide : tile_row)(depth, a + i * row, row, step, own_b, own_bias, c + i * width + left, width);
        j = left + (wide ? 3 * WIDTH : WIDTH);
    }
}

int64_t smallest_width(void) { return WIDTH; }

// out = rows weight + bias, [count, outputs], through tanh if asked. tanh(x) = sign(x) (1 - e) / (1 + e), e = exp(-2|x|).
void affine(const float *rows, const float *weight, const float *bias, float *out, int64_t count, int64_t inputs,
            int64_t outputs, int32_t through_tanh) {
    multiply(count, outputs, inputs, rows, inputs, 1, weight, bias, out);
    if (!through_tanh) return;
    for (int64_t i = 0; i < count * outputs; i++) {
        float e = exp_nonpositive(-2 * fabsf(out[i]));
        out[i] = copysignf((1 - e) / (1 + e), out[i]);
    }
}

// A layer's gradient: d_weight [inputs, outputs] = sum_r importance[r] rows[r]^T outgoing[r], d_bias [outputs] likewise;
// importance may be NULL (all ones), else scratch holds count * inputs numbers.
void layer_gradient(const float *rows, const float *outgoing, const float *importance, float *scratch, float *d_weight,
                    float *d_bias, int64_t count, int64_t inputs, int64_t outputs) {
    memset(d_bias, 0, outputs * sizeof(float));
    for (int64_t r = 0; r < count; r++) {
        float w = importance ? importance[r] : 1;
        for (int64_t j = 0; j < outputs; j++) d_bias[j] += w * outgoing[r * outputs + j];
        if (importance)
            for (int64_t i = 0; i < inputs; i++) scratch[r * inputs + i] = w * rows[r * inputs + i];
    }
    multiply(inputs, outputs, count, importance ? scratch : rows, 1, inputs, outgoing, 0, d_weight);
}

// gradient[i] *= 1 - activation[i]^2: back through tanh.
void tanh_backward(float *gradient, const float *activation, int64_t count) {
    for (int64_t i = 0; i < count; i++) gradient[i] *= 1 - activation[i] * activation[i];
}

// One step uphill of Adam, see pipeline/training/optimizer.py: theta += size * m / (sqrt(v) + eps), with the moments
// from before this gradient (lagged) or after it. The gradient comes in pieces that follow each other in theta.
void adam_ascent(float *theta, float *m, float *v, const float *const *pieces, const int64_t *counts, int64_t number,
                 float size, float eps, float beta1, float beta2, int32_t lagged) {
    for (int64_t piece = 0; piece < number; piece++) {
        const float *gradient = pieces[piece];
        int64_t count = counts[piece];
        if (lagged) {
            for (int64_t i = 0; i < count; i++) {
                float g = gradient[i];
                theta[i] += size * m[i] / (sqrtf(v[i]) + eps);
                m[i] += (1 - beta1) * (g - m[i]);
                v[i] = beta2 * v[i] + (1 - beta2) * g * g;
            }
        } else {
            for (int64_t i = 0; i < count; i++) {
                float g = gradient[i];
                m[i] += (1 - beta1) * (g - m[i]);
                v[i] = beta2 * v[i] + (1 - beta2) * g * g;
                theta[i] += size * m[i] / (sqrtf(v[i]) + eps);
            }
        }
        theta += count;
        m += count;
        v += count;
    }
}
