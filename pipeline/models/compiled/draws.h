// The draws of pipeline/draws/philox.py, bit for bit: products and sums are rounded one by one.
#pragma once
#include "simd.h"

// Four words of each of the WIDTH counters from `first` on, as `counters` orders them.
INLINE void philox(uint32_t first, uint64_t index, const uint32_t key[2], ivec words[4]) {
    ivec c0 = int_add(int_all((int)first), counters()), c1 = int_all(0);
    ivec c2 = int_all((int)(uint32_t)index), c3 = int_all((int)(uint32_t)(index >> 32));
    const ivec m0 = int_all((int)0xD2511F53u), m1 = int_all((int)0xCD9E8D57u);
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        ivec h0, l0, h1, l1;
        products_of_words(c0, m0, &h0, &l0);
        products_of_words(c2, m1, &h1, &l1);
        c0 = int_xor(int_xor(h1, c1), int_all((int)k0)), c1 = l1;
        c2 = int_xor(int_xor(h0, c3), int_all((int)k1)), c3 = l0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

INLINE vec unit(ivec word) { return mul(to_float(down(word, 8)), all(0x1p-24f)); }

// sin and cos of 2 pi n / 2^24.
INLINE void sine_and_cosine(ivec n, vec *sine, vec *cosine) {
    ivec quarter = down(int_add(n, int_all(1 << 21)), 22), one = int_all(1), two = int_all(2);
    vec f = mul(mul(to_float(int_sub(n, up(quarter, 22))), all(0x1p-22f)), all(0x1.921fb6p+0f));
    vec square = mul(f, f);
    vec s = add(mul(add(mul(square, all(-0x1.9943f20p-13f)), all(0x1.11073c0p-7f)), square), all(-0x1.5555460p-3f));
    vec c = add(mul(add(mul(square, all(0x1.99eb9c0p-16f)), all(-0x1.6c0c340p-10f)), square), all(0x1.55554a0p-5f));
    s = add(mul(mul(s, square), f), f);
    c = add(mul(mul(c, square), square), sub(all(1), mul(square, all(0.5f))));
    mask odd = int_equal(int_and(quarter, one), one);
    ivec s_sign = up(int_and(quarter, two), 30), c_sign = up(int_and(int_add(quarter, one), two), 30);
    *sine = as_float(int_xor(as_int(choose(odd, c, s)), s_sign));
    *cosine = as_float(int_xor(as_int(choose(odd, s, c)), c_sign));
}

// Elements first ... first + count - 1 of a draw of normal numbers, `first` a multiple of 4; writes up to
// 4 WIDTH - 1 more.
static void draw_normal(float *out, long first, long count, uint64_t index, const uint32_t key[2]) {
    for (long e = 0; e < count; e += 4 * WIDTH) {
        ivec words[4], ordered[4], numbers[4];
        philox((uint32_t)((first + e) / 4), index, key, words);
        for (int half = 0; half < 4; half += 2) {
            vec u = mul(to_float(int_sub(int_all(1 << 24), down(words[half], 8))), all(0x1p-24f)), s, c;
            vec radius = root(mul(logarithm(u), all(-2)));
            sine_and_cosine(down(words[half + 1], 8), &s, &c);
            numbers[half] = as_int(mul(radius, c)), numbers[half + 1] = as_int(mul(radius, s));
        }
        interleave(numbers, ordered);
        for (int j = 0; j < 4; j++) store(out + e + WIDTH * j, as_float(ordered[j]));
    }
}
// Binarized images: a bit is one where its uniform number is less than grey / 255. `rows`: each image's grey values.
static void draw_bits(uint8_t *bits, const uint8_t *const *rows, uint64_t index, const uint32_t key[2]) {
    for (long e = 0; e < (long)IMAGES * PIXELS; e += 4 * WIDTH) {
        ivec words[4], ordered[4];
        philox((uint32_t)(e / 4), index, key, words);
        interleave(words, ordered);
        for (int j = 0; j < 4; j++) {
            long at = e + WIDTH * j;
            vec grey = divide(load_bytes(rows[at / PIXELS] + at % PIXELS), all(255));
            store_bits(bits + at / 8, less(unit(ordered[j]), grey));
        }
    }
}
