// Vectors of float32 and of 32-bit integers: 16 at once with AVX-512, 8 with AVX2. Every fused multiply-add is written
// out (compile with -ffp-contract=off), so that the bits of a result do not depend on the compiler.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

#if defined __AVX512F__ && defined __AVX512BW__ && defined __AVX512DQ__ && defined __AVX512VL__
enum { WIDTH = 16 };
typedef __m512 vec;
typedef __m512i ivec;
typedef __mmask16 mask;

INLINE vec load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void store(float *p, vec x) { _mm512_storeu_ps(p, x); }
INLINE vec all(float x) { return _mm512_set1_ps(x); }
INLINE vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec divide(vec a, vec b) { return _mm512_div_ps(a, b); }
INLINE vec mul_add(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }    // a b + c
INLINE vec neg_mul_add(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
INLINE vec mul_sub(vec a, vec b, vec c) { return _mm512_fmsub_ps(a, b, c); }    // a b - c
INLINE vec larger(vec a, vec b) { return _mm512_max_ps(a, b); }             // b where one is NaN
INLINE vec root(vec a) { return _mm512_sqrt_ps(a); }
INLINE vec nearest(vec a) { return _mm512_roundscale_ps(a, 8); }
INLINE vec in_register(vec x) { return x; }  // 32 registers: compilers see to it themselves
INLINE float total(vec a) { return _mm512_reduce_add_ps(a); }
// p 2^n for an integer n.
INLINE vec scaled(vec p, vec n) { return _mm512_scalef_ps(p, n); }
// 1 / d to the last bit or two, of a table and one Newton step.
INLINE vec inverse(vec d) {
    vec q = _mm512_rcp14_ps(d);
    return mul(q, neg_mul_add(d, q, all(2)));
}
INLINE vec with_sign(vec magnitude, vec sign) {
    return _mm512_or_ps(magnitude, _mm512_and_ps(sign, all(-0.0f)));
}
INLINE vec magnitude(vec x) { return _mm512_andnot_ps(all(-0.0f), x); }

INLINE mask first_lanes(int count) { return count >= WIDTH ? 0xffff : (1u << count) - 1; }
INLINE mask no_lanes(void) { return 0; }
INLINE mask lanes_of_bits(const uint8_t *bits) { return (mask)(bits[0] | bits[1] << 8); }
INLINE void store_bits(uint8_t *bits, mask m) { bits[0] = (uint8_t)m, bits[1] = (uint8_t)(m >> 8); }
INLINE mask less(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
INLINE mask equal(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE mask without(mask a, mask b) { return a & ~b; }
INLINE mask either(mask a, mask b) { return a | b; }
INLINE vec choose(mask m, vec yes, vec no) { return _mm512_mask_blend_ps(m, no, yes); }
INLINE vec load_lanes(mask m, const float *p) { return _mm512_maskz_loadu_ps(m, p); }  // 0 elsewhere
INLINE void store_lanes(mask m, float *p, vec x) { _mm512_mask_storeu_ps(p, m, x); }

INLINE ivec int_all(int x) { return _mm512_set1_epi32(x); }
INLINE ivec int_add(ivec a, ivec b) { return _mm512_add_epi32(a, b); }
INLINE ivec int_sub(ivec a, ivec b) { return _mm512_sub_epi32(a, b); }
INLINE ivec int_and(ivec a, ivec b) { return _mm512_and_si512(a, b); }
INLINE ivec int_xor(ivec a, ivec b) { return _mm512_xor_si512(a, b); }
INLINE ivec up(ivec a, int bits) { return _mm512_slli_epi32(a, bits); }
INLINE ivec down(ivec a, int bits) { return _mm512_srli_epi32(a, bits); }
INLINE ivec down_signed(ivec a, int bits) { return _mm512_srai_epi32(a, bits); }
INLINE mask int_equal(ivec a, ivec b) { return _mm512_cmpeq_epi32_mask(a, b); }
INLINE vec to_float(ivec a) { return _mm512_cvtepi32_ps(a); }
INLINE vec as_float(ivec a) { return _mm512_castsi512_ps(a); }
INLINE ivec as_int(vec a) { return _mm512_castps_si512(a); }
INLINE vec load_bytes(const uint8_t *p) {
    return to_float(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
// The counters that make WIDTH elements in the order in which `interleave` of their words leaves them.
INLINE ivec counters(void) { return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }
INLINE void products_of_words(ivec a, ivec m, ivec *high, ivec *low) {
    ivec even = _mm512_mul_epu32(a, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);
    *low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
    *high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
}
INLINE void interleave(const ivec in[4], ivec out[4]) {
    ivec t0 = _mm512_unpacklo_epi32(in[0], in[1]), t1 = _mm512_unpackhi_epi32(in[0], in[1]);
    ivec t2 = _mm512_unpacklo_epi32(in[2], in[3]), t3 = _mm512_unpackhi_epi32(in[2], in[3]);
    out[0] = _mm512_unpacklo_epi64(t0, t2), out[1] = _mm512_unpackhi_epi64(t0, t2);
    out[2] = _mm512_unpacklo_epi64(t1, t3), out[3] = _mm512_unpackhi_epi64(t1, t3);
}

#if defined __AVX512BF16__
#define HAS_BFLOAT16 1
// A word holds two bfloat16: two neighbours, rounded, or one of each of two vectors.
INLINE ivec words_of_neighbours(vec low, vec high) { return (ivec)_mm512_cvtne2ps_pbh(high, low); }
INLINE ivec words_of_two(vec low, vec high) {
    ivec l = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
    return _mm512_or_si512(l, _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high)), 16));
}
// c + the products of both halves of the words.
INLINE vec mul_add_words(vec a, vec b, vec c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
#endif
// Rows become columns, WIDTH x WIDTH.
INLINE void transpose(vec r[WIDTH]) {
    vec t[WIDTH];
#define PAIRS(x) _mm512_castps_pd(x)
#define SINGLES(x) _mm512_castpd_ps(x)
    for (int k = 0; k < 16; k += 2)
        t[k] = _mm512_unpacklo_ps(r[k], r[k + 1]), t[k + 1] = _mm512_unpackhi_ps(r[k], r[k + 1]);
    for (int k = 0; k < 16; k += 4) {
        r[k] = SINGLES(_mm512_unpacklo_pd(PAIRS(t[k]), PAIRS(t[k + 2])));
        r[k + 1] = SINGLES(_mm512_unpackhi_pd(PAIRS(t[k]), PAIRS(t[k + 2])));
        r[k + 2] = SINGLES(_mm512_unpacklo_pd(PAIRS(t[k + 1]), PAIRS(t[k + 3])));
        r[k + 3] = SINGLES(_mm512_unpackhi_pd(PAIRS(t[k + 1]), PAIRS(t[k + 3])));
    }
#undef PAIRS
#undef SINGLES
    for (int k = 0; k < 4; k++) {
        t[k] = _mm512_shuffle_f32x4(r[k], r[k + 4], 0x88), t[k + 4] = _mm512_shuffle_f32x4(r[k], r[k + 4], 0xdd);
        t[k + 8] = _mm512_shuffle_f32x4(r[k + 8], r[k + 12], 0x88);
        t[k + 12] = _mm512_shuffle_f32x4(r[k + 8], r[k + 12], 0xdd);
    }
    for (int k = 0; k < 4; k++) {
        r[k] = _mm512_shuffle_f32x4(t[k], t[k + 8], 0x88), r[k + 8] = _mm512_shuffle_f32x4(t[k], t[k + 8], 0xdd);
        r[k + 4] = _mm512_shuffle_f32x4(t[k + 4], t[k + 12], 0x88);
        r[k + 12] = _mm512_shuffle_f32x4(t[k + 4], t[k + 12], 0xdd);
    }
}

#elif defined __AVX2__ && defined __FMA__
enum { WIDTH = 8 };
typedef __m256 vec;
typedef __m256i ivec;
typedef __m256i mask;  // all bits of a lane, or none

INLINE vec load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void store(float *p, vec x) { _mm256_storeu_ps(p, x); }
INLINE vec all(float x) { return _mm256_set1_ps(x); }
INLINE vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec divide(vec a, vec b) { return _mm256_div_ps(a, b); }
INLINE vec mul_add(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec neg_mul_add(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE vec mul_sub(vec a, vec b, vec c) { return _mm256_fmsub_ps(a, b, c); }
INLINE vec larger(vec a, vec b) { return _mm256_max_ps(a, b); }
INLINE vec root(vec a) { return _mm256_sqrt_ps(a); }
INLINE vec nearest(vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// Else GCC 12 loads a vector that several products share again for each of them, and loads limit the loop.
INLINE vec in_register(vec x) {
    __asm__("" : "+x"(x));
    return x;
}
INLINE float total(vec a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
// Up to 2^127: what is larger ends in another infinity soon.
INLINE vec scaled(vec p, vec n) {
    ivec e = _mm256_cvtps_epi32(_mm256_min_ps(all(127), n));
    return mul(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23)));
}
INLINE vec inverse(vec d) { return divide(all(1), d); }
INLINE vec with_sign(vec magnitude, vec sign) {
    return _mm256_or_ps(magnitude, _mm256_and_ps(sign, all(-0.0f)));
}
INLINE vec magnitude(vec x) { return _mm256_andnot_ps(all(-0.0f), x); }

INLINE mask first_lanes(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE mask no_lanes(void) { return _mm256_setzero_si256(); }
INLINE mask lanes_of_bits(const uint8_t *bits) {
    ivec lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits[0]), lane), lane);
}
INLINE void store_bits(uint8_t *bits, mask m) { bits[0] = (uint8_t)_mm256_movemask_ps(_mm256_castsi256_ps(m)); }
INLINE mask less(vec a, vec b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
INLINE mask equal(vec a, vec b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
INLINE mask without(mask a, mask b) { return _mm256_andnot_si256(b, a); }
INLINE mask either(mask a, mask b) { return _mm256_or_si256(a, b); }
INLINE vec choose(mask m, vec yes, vec no) { return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(m)); }
INLINE vec load_lanes(mask m, const float *p) { return _mm256_maskload_ps(p, m); }
INLINE void store_lanes(mask m, float *p, vec x) { _mm256_maskstore_ps(p, m, x); }

INLINE ivec int_all(int x) { return _mm256_set1_epi32(x); }
INLINE ivec int_add(ivec a, ivec b) { return _mm256_add_epi32(a, b); }
INLINE ivec int_sub(ivec a, ivec b) { return _mm256_sub_epi32(a, b); }
INLINE ivec int_and(ivec a, ivec b) { return _mm256_and_si256(a, b); }
INLINE ivec int_xor(ivec a, ivec b) { return _mm256_xor_si256(a, b); }
INLINE ivec up(ivec a, int bits) { return _mm256_slli_epi32(a, bits); }
INLINE ivec down(ivec a, int bits) { return _mm256_srli_epi32(a, bits); }
INLINE ivec down_signed(ivec a, int bits) { return _mm256_srai_epi32(a, bits); }
INLINE mask int_equal(ivec a, ivec b) { return _mm256_cmpeq_epi32(a, b); }
INLINE vec to_float(ivec a) { return _mm256_cvtepi32_ps(a); }
INLINE vec as_float(ivec a) { return _mm256_castsi256_ps(a); }
INLINE ivec as_int(vec a) { return _mm256_castps_si256(a); }
INLINE vec load_bytes(const uint8_t *p) {
    return to_float(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE ivec counters(void) { return _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7); }
INLINE void products_of_words(ivec a, ivec m, ivec *high, ivec *low) {
    ivec even = _mm256_mul_epu32(a, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);
    *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}
INLINE void interleave(const ivec in[4], ivec out[4]) {
    ivec t0 = _mm256_unpacklo_epi32(in[0], in[1]), t1 = _mm256_unpackhi_epi32(in[0], in[1]);
    ivec t2 = _mm256_unpacklo_epi32(in[2], in[3]), t3 = _mm256_unpackhi_epi32(in[2], in[3]);
    out[0] = _mm256_unpacklo_epi64(t0, t2), out[1] = _mm256_unpackhi_epi64(t0, t2);
    out[2] = _mm256_unpacklo_epi64(t1, t3), out[3] = _mm256_unpackhi_epi64(t1, t3);
}
INLINE void transpose(vec r[WIDTH]) {
    vec t[WIDTH];
    for (int k = 0; k < 8; k += 2)
        t[k] = _mm256_unpacklo_ps(r[k], r[k + 1]), t[k + 1] = _mm256_unpackhi_ps(r[k], r[k + 1]);
    for (int k = 0; k < 8; k += 4) {
        r[k] = _mm256_shuffle_ps(t[k], t[k + 2], 0x44), r[k + 1] = _mm256_shuffle_ps(t[k], t[k + 2], 0xee);
        r[k + 2] = _mm256_shuffle_ps(t[k + 1], t[k + 3], 0x44), r[k + 3] = _mm256_shuffle_ps(t[k + 1], t[k + 3], 0xee);
    }
    for (int k = 0; k < 4; k++) {
        t[k] = _mm256_permute2f128_ps(r[k], r[k + 4], 0x20), t[k + 4] = _mm256_permute2f128_ps(r[k], r[k + 4], 0x31);
    }
    for (int k = 0; k < 8; k++) r[k] = t[k];
}

#else
#error "the compiled step needs AVX-512 (F, BW, DQ, VL) or AVX2 with FMA"
#endif

#if !defined HAS_BFLOAT16
#define HAS_BFLOAT16 0
INLINE ivec words_of_neighbours(vec low, vec high) { return (void)high, as_int(low); }  // none is ever asked for
INLINE ivec words_of_two(vec low, vec high) { return (void)high, as_int(low); }
INLINE vec mul_add_words(vec a, vec b, vec c) { return mul_add(a, b, c); }
#endif

// exp(x) to the last bit or two; 1.6e-38 for x below -87. Cephes' polynomial.
INLINE vec exponential(vec x) {
    x = larger(all(-87), x);
    vec n = nearest(mul(x, all(0x1.715476p+0f)));
    vec r = mul_add(n, all(0x1.bd0106p-13f), neg_mul_add(n, all(0x1.63p-1f), x));
    vec p = mul_add(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
    p = mul_add(p, r, all(8.3334519073e-3f));
    p = mul_add(p, r, all(4.1665795894e-2f));
    p = mul_add(p, r, all(1.6666665459e-1f));
    p = mul_add(p, r, all(5.0000001201e-1f));
    return scaled(mul_add(mul(p, r), r, add(r, all(1))), n);
}
// exp(-|x|), off by 1e-7 of itself, from |x| = 10 on by up to 3e-7; NaN stays NaN.
INLINE vec decay(vec x) {
    x = with_sign(x, all(-0.0f));
#if defined __AVX512F__
    // 2^(n / 16) and three terms of exp(r), |r| < log(2) / 32. `table`: the bits of 2^(j / 16), less those that the
    // shift of n, whose last four bits are j, puts into their place.
    const ivec table = _mm512_setr_epi32(0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532,
                                         0x3f75fed7, 0x3f75583f, 0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c,
                                         0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d);
    const vec integers = all(0x1.8p+23f);  // beside it, float32 has no fractions
    x = larger(all(-87), x);
    vec shifted = mul_add(x, all(0x1.715476p+4f), integers), n = sub(shifted, integers);
    vec r = neg_mul_add(n, all(0x1.62e43p-5f), x);
    vec p = mul(mul_add(mul_add(r, all(0x1.555556p-3f), all(0.5f)), r, all(1)), r);
    ivec bits = as_int(shifted);
    vec power = as_float(int_add(_mm512_permutexvar_epi32(bits, table), up(bits, 19)));
    return mul_add(power, p, power);
#else
    return exponential(x);
#endif
}
INLINE vec tanh_of(vec x, vec decayed) {  // `decayed`: exp(-2 |x|)
    return with_sign(mul(sub(all(1), decayed), inverse(add(all(1), decayed))), x);
}
INLINE vec hyperbolic_tangent(vec x) { return tanh_of(x, exponential(mul(magnitude(x), all(-2)))); }
INLINE vec quick_tanh(vec x) { return tanh_of(x, decay(add(x, x))); }
// log(y) for a normal y > 0; exactly `_log_of_share` of pipeline/draws/philox.py, whose products are not fused.
INLINE vec logarithm(vec y) {
    ivec bits = int_add(as_int(y), int_all(0x3f800000 - 0x3f3504f3));
    vec exponent = to_float(int_sub(down_signed(bits, 23), int_all(127)));
    vec f = sub(as_float(int_add(int_and(bits, int_all(0x7fffff)), int_all(0x3f3504f3))), all(1));
    vec square = mul(f, f);
    vec p = add(mul(f, all(0x1.2043760p-4f)), all(-0x1.d7a3700p-4f));
    p = add(mul(p, f), all(0x1.de4a340p-4f));
    p = add(mul(p, f), all(-0x1.fcba9e0p-4f));
    p = add(mul(p, f), all(0x1.23d37e0p-3f));
    p = add(mul(p, f), all(-0x1.555ca00p-3f));
    p = add(mul(p, f), all(0x1.999d580p-3f));
    p = add(mul(p, f), all(-0x1.fffff80p-3f));
    p = add(mul(p, f), all(0x1.5555540p-2f));
    vec tail = add(mul(mul(p, f), square), mul(exponent, all(-0x1.bd0106p-13f)));
    return add(mul(exponent, all(0x1.63p-1f)), add(f, sub(tail, mul(square, all(0.5f)))));
}
