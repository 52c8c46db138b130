// Elementwise passes of a training step, each over its data once. Compiled on first use by pipeline/models/kernels.py,
// which also holds what each one computes in torch.

#include <math.h>
#include <stdint.h>
#include <string.h>

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
