/* What one core can do at best: multiply-adds in registers, and moving numbers between cache and registers.
   Each function does about a millisecond of work and returns how many operations, or bytes, that was. */
#include <stddef.h>

#if defined(__AVX512F__)
#define WIDTH 16
#define IN_REGISTER(x) __asm__ volatile("" : "+v"(x))
#elif defined(__aarch64__)
#define WIDTH 4
#define IN_REGISTER(x) __asm__ volatile("" : "+w"(x))
#else
#if defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#define IN_REGISTER(x) __asm__ volatile("" : "+x"(x))
#endif
typedef float vector __attribute__((vector_size(4 * WIDTH)));

/* Loops over the chains are unrolled, all of them: an array that is indexed by a variable lives in memory. */
#define EACH_CHAIN _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++)
enum { CHAINS = 12, ROUNDS = 20000, BYTES = 1 << 25 };

static vector all(float value) {
    vector zero = {0};
    return zero + value;
}

/* float32 multiply-adds, a multiplication and an addition each, in independent chains that hide their latency. */
double multiply_add(void) {
    vector sum[CHAINS], a = all(0.999f), b = all(1e-3f);
    EACH_CHAIN sum[i] = all((float)i);
    for (int round = 0; round < ROUNDS; round++) {
        EACH_CHAIN {
            sum[i] = sum[i] * a + b;
            IN_REGISTER(sum[i]);
        }
    }
    return 2.0 * WIDTH * CHAINS * ROUNDS;
}

#ifdef __AVX512BF16__
#include <immintrin.h>
/* Dot products of pairs of bfloat16: two multiplications and two additions for each float32 of the sum. */
double bfloat16_dot(void) {
    __m512 sum[CHAINS];
    __m512bh a = (__m512bh)_mm512_set1_epi16(0x3a83);
    EACH_CHAIN sum[i] = _mm512_set1_ps((float)i);
    for (int round = 0; round < ROUNDS; round++) {
        EACH_CHAIN {
            sum[i] = _mm512_dpbf16_ps(sum[i], a, a);
            IN_REGISTER(sum[i]);
        }
    }
    return 4.0 * WIDTH * CHAINS * ROUNDS;
}
#else
/* 0: this processor multiplies no bfloat16. */
double bfloat16_dot(void) { return 0; }
#endif

/* Reads a buffer of so many bytes, a multiple of four vectors, again and again. */
double read_bytes(const float *buffer, size_t bytes) {
    const vector *v = (const vector *)buffer;
    size_t count = bytes / sizeof(vector), moved = 0;
    vector s0 = all(0), s1 = s0, s2 = s0, s3 = s0;
    for (; moved < BYTES; moved += bytes) {
        for (size_t i = 0; i < count; i += 4) {
            s0 += v[i];
            s1 += v[i + 1];
            s2 += v[i + 2];
            s3 += v[i + 3];
        }
        __asm__ volatile("" ::: "memory");
    }
    s0 += s1 + s2 + s3;
    IN_REGISTER(s0);
    return (double)moved;
}

/* Changes every number of a buffer in place, as an optimizer does; bytes read and bytes written both count. */
double update_bytes(float *buffer, size_t bytes) {
    vector *v = (vector *)buffer, step = all(1e-9f);
    size_t count = bytes / sizeof(vector), moved = 0;
    for (; moved < BYTES; moved += bytes) {
        for (size_t i = 0; i < count; i++) v[i] += step;
        __asm__ volatile("" ::: "memory");
    }
    return 2.0 * (double)moved;
}
