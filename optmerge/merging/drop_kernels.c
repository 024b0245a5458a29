/* Random drops: by what the entries of a chunk are multiplied, and the sums of their magnitudes.
 *
 *   entry i of a parameter stays if word i >= below[r], and is then multiplied by factors[r]; it is 0 otherwise
 *
 * Word i is the i-th of Philox 4x64-10 (Salmon et al. 2011) with the parameter's key, as numpy counts. r is the rank of
 * the entry's magnitude within its row, equal ones in order, or 0 where all ranks are alike.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 512   /* entries that are drawn at a time; also of a chunk that has no ranks */
#define LANES 16    /* running sums of magnitudes: entry i of a parameter belongs to lane i % LANES */
#define PER_COUNT 8 /* 32-bit words that Philox makes per count */
#define DIGIT 11    /* most bits that are sorted by at a time */

int drop_lanes(void) { return LANES; }

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The words of two counts one after the other: neither waits for the other's products. */
static inline void philox(uint32_t *words, uint64_t count, uint64_t k0, uint64_t k1) {
    uint64_t c0[2] = {count, count + 1}, c1[2] = {0}, c2[2] = {0}, c3[2] = {0};
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            unsigned __int128 first = (unsigned __int128)c0[j] * 0xD2E7470EE14C6C93u;
            unsigned __int128 second = (unsigned __int128)c2[j] * 0xCA5A826395121157u;
            c0[j] = (uint64_t)(second >> 64) ^ c1[j] ^ k0;
            c1[j] = (uint64_t)second;
            c2[j] = (uint64_t)(first >> 64) ^ c3[j] ^ k1;
            c3[j] = (uint64_t)first;
        }
        k0 += 0x9E3779B97F4A7C15u;
        k1 += 0xBB67AE8584CAA73Bu;
    }
    for (int j = 0; j < 2; j++) {
        const uint64_t made[4] = {c0[j], c1[j], c2[j], c3[j]};
        for (int n = 0; n < 4; n++) {
            *words++ = (uint32_t)made[n];
            *words++ = (uint32_t)(made[n] >> 32);
        }
    }
}

/* The words of entries start to start + count; the room is for BLOCK + 3 * PER_COUNT. */
static const uint32_t *draw(uint32_t *room, int64_t start, int64_t count, uint64_t k0, uint64_t k1) {
    int64_t first = start / PER_COUNT, last = (start + count + PER_COUNT - 1) / PER_COUNT;
    for (int64_t n = first; n < last; n += 2) /* numpy counts before it makes the first word */
        philox(room + (n - first) * PER_COUNT, (uint64_t)n + 1, k0, k1);
    return room + start % PER_COUNT;
}

/* lanes[(start + i) % LANES] += |values[i]|, each lane in the order of i: chunks do not matter. */
static void add_magnitudes(double *lanes, const float *values, int64_t start, int64_t count) {
    double sums[LANES];
    int64_t i = 0;
    for (; i < count && (start + i) % LANES; i++) lanes[(start + i) % LANES] += (double)fabsf(values[i]);
    memcpy(sums, lanes, sizeof sums);
    for (; i + LANES <= count; i += LANES)
        for (int j = 0; j < LANES; j++) sums[j] += (double)fabsf(values[i + j]);
    for (int j = 0; i + j < count; j++) sums[j] += (double)fabsf(values[i + j]);
    memcpy(lanes, sums, sizeof sums);
}

/* order[r] = (something, position of the entry of rank r): sorted by the bits in which the magnitudes differ, of which
 * differences of bf16 numbers have few. Returns where the order is: in one of the two rooms for width keys. */
static const uint64_t *rank(uint64_t *room, uint64_t *other, const float *values, int64_t width) {
    uint32_t magnitude, first = 0, differ = 0;
    for (int64_t i = 0; i < width; i++) {
        memcpy(&magnitude, values + i, 4);
        magnitude &= 0x7fffffffu;
        if (i == 0) first = magnitude;
        differ |= magnitude ^ first;
        room[i] = (uint64_t)magnitude << 32 | (uint64_t)i;
    }
    if (!differ) return room;
    int low = __builtin_ctz(differ), bits = 32 - __builtin_clz(differ) - low;
    int passes = (bits + DIGIT - 1) / DIGIT, digit = (bits + passes - 1) / passes;
    for (int pass = 0; pass < passes; pass++) {
        uint32_t places[1 << DIGIT] = {0}, mask = (1u << digit) - 1, next = 0;
        int shift = 32 + low + pass * digit;
        for (int64_t i = 0; i < width; i++) places[room[i] >> shift & mask]++;
        for (uint32_t value = 0; value <= mask; value++) {
            uint32_t here = places[value];
            places[value] = next;
            next += here;
        }
        for (int64_t i = 0; i < width; i++) other[places[room[i] >> shift & mask]++] = room[i];
        uint64_t *sorted = other;
        other = room;
        room = sorted;
    }
    return room;
}

/* Multiply, and note what stays and the sums of magnitudes before and after. */
static void multiply_by(float *values, const float *by, uint8_t *stays, double *sums, int64_t start, int64_t count) {
    if (sums) add_magnitudes(sums, values, start, count);
    if (stays)
        for (int64_t i = 0; i < count; i++) stays[i] = by[i] != 0.0f;
    for (int64_t i = 0; i < count; i++) values[i] *= by[i];
    if (sums) add_magnitudes(sums + LANES, values, start, count);
}

/* values: [rows, width], changed in place; below, factors: [ranks], 1 or width; stays: [rows, width] or NULL;
 * sums: [2, LANES], added to, or NULL. Returns whether there was memory. */
int drop(float *values, int64_t rows, int64_t width, int64_t start, uint64_t k0, uint64_t k1, const uint64_t *below,
         const float *factors, int64_t ranks, uint8_t *stays, double *sums) {
    uint32_t room[BLOCK + 3 * PER_COUNT];
    float by[BLOCK];
    if (ranks == 1) {
        int64_t total = rows * width;
        uint64_t lowest = below[0];
        float factor = factors[0];
        for (int64_t lo = 0; lo < total; lo += BLOCK) {
            int64_t count = least(BLOCK, total - lo);
            const uint32_t *words = draw(room, start + lo, count, k0, k1);
            for (int64_t i = 0; i < count; i++) by[i] = words[i] >= lowest ? factor : 0.0f;
            multiply_by(values + lo, by, stays ? stays + lo : NULL, sums, start + lo, count);
        }
        return 1;
    }
    uint64_t *keys = malloc((size_t)width * (2 * sizeof(uint64_t) + sizeof(uint32_t) + sizeof(float)));
    if (!keys) return 0;
    uint32_t *drawn = (uint32_t *)(keys + 2 * width);
    float *by_entry = (float *)(drawn + width);
    for (int64_t row = 0; row < rows; row++) {
        float *of_row = values + row * width;
        const uint64_t *order = rank(keys, keys + width, of_row, width);
        for (int64_t lo = 0; lo < width; lo += BLOCK) {
            int64_t count = least(BLOCK, width - lo);
            memcpy(drawn + lo, draw(room, start + row * width + lo, count, k0, k1), (size_t)count * 4);
        }
        for (int64_t r = 0; r < width; r++) {
            uint32_t i = (uint32_t)order[r];
            by_entry[i] = drawn[i] >= below[r] ? factors[r] : 0.0f;
        }
        multiply_by(of_row, by_entry, stays ? stays + row * width : NULL, sums, start + row * width, width);
    }
    free(keys);
    return 1;
}

/* values[i] *= scale where it stays, 0 elsewhere */
void keep(float *values, const uint8_t *stays, double scale, int64_t count) {
    float factor = (float)scale;
    for (int64_t i = 0; i < count; i++) values[i] *= stays[i] ? factor : 0.0f;
}
