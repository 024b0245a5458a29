/* The two passes over weights that a search on the CPU lives on, fused so that each input is read once.
 *
 *   merge:    out = cast(theta + sum_k fl(c_k * fl(theta_k - theta)))      in fp32, sources in order, one cast
 *   contract: partial[job][k] = <gradient, theta_k - theta>                products in fp32, sums in fp64
 *
 * Values pass through blocks that stay in the first-level cache, up to four sources at a time, so that a running total
 * stays in a register and several streams come from memory at once. Any number of threads call the same function on
 * the same jobs and draw from one counter; what a job computes does not depend on who computes it, so results do not
 * depend on the number of threads. Compiled without contraction of products and sums: every rounding is a real one.
 */

#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define BLOCK 512   /* elements: a block of four sources, the base and the total stays in the first-level cache */
#define AHEAD 2048 /* how far before their use values are asked for from memory */
#define AT_ONCE 4
#define LANES 32
#define MOST 1024 /* sources of one job */

enum { F32 = 0, BF16 = 1, F16 = 2, LOW = 3, HIGH = 4 }; /* the last two: every other bf16, see split */

typedef struct {
    const void *data;
    int32_t type;
    int32_t absolute; /* 1: whole values, from which theta is subtracted; 0: a delta */
    double coefficient;
} Source;

typedef struct {
    void *out; /* merge: what is written; contract: the gradient */
    const void *base;
    const Source *sources;
    int64_t length;
    int32_t out_type;
    int32_t base_type;
    int64_t count; /* of sources */
} Job;

int struct_sizes(void) { return (int)(sizeof(Source) * 1000 + sizeof(Job)); }

int most_sources(void) { return MOST; }

int has_half(void) { /* whether fp16 is converted in hardware here; without it no job may hold any */
#if defined(__F16C__)
    return 1;
#else
    return 0;
#endif
}

static inline int64_t size_of(int32_t type) { return type == F32 ? 4 : 2; }

static inline const char *at(const void *data, int32_t type, int64_t position) {
    return (const char *)data + position * size_of(type);
}

static inline float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static inline uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16; /* to nearest, ties to even */
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (uint16_t)rounded;
}

/* Two neighbouring bf16 in one word: each becomes fp32 by one operation, and no value has to change its lane. Where all
 * tensors of a job are bf16, blocks are kept split into the values of even and of odd positions. */
static inline float low_of(const void *data, int64_t i) {
    uint32_t pair;
    memcpy(&pair, (const char *)data + 4 * i, 4);
    pair <<= 16;
    float value;
    memcpy(&value, &pair, 4);
    return value;
}

static inline float high_of(const void *data, int64_t i) {
    uint32_t pair;
    memcpy(&pair, (const char *)data + 4 * i, 4);
    pair &= 0xffff0000u;
    float value;
    memcpy(&value, &pair, 4);
    return value;
}

/* values[i] = data[i] as fp32 */
static void load(float *restrict values, const void *data, int32_t type, int64_t length) {
    if (type == F32) {
        memcpy(values, data, (size_t)length * 4);
    } else if (type == BF16) {
        for (int64_t i = 0; i < length; i++) values[i] = from_bf16(((const uint16_t *)data)[i]);
    }
#if defined(__F16C__)
    else {
        const uint16_t *half = data;
        int64_t i = 0;
        for (; i + 8 <= length; i += 8)
            _mm256_storeu_ps(values + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(half + i))));
        for (; i < length; i++) values[i] = _cvtsh_ss(half[i]);
    }
#endif
}

/* Write bytes that nobody reads soon past the caches, which saves reading their lines first. */
static void stream(void *out, const void *bytes, int64_t count) {
#if defined(__SSE2__)
    if (((uintptr_t)out & 15) == 0) {
        int64_t i = 0;
        for (; i + 16 <= count; i += 16)
            _mm_stream_si128((__m128i *)((char *)out + i), _mm_load_si128((const __m128i *)((const char *)bytes + i)));
        memcpy((char *)out + i, (const char *)bytes + i, (size_t)(count - i));
        return;
    }
#endif
    memcpy(out, bytes, (size_t)count);
}

static void load_split(float *restrict even, float *restrict odd, const void *data, int64_t pairs) {
    for (int64_t i = 0; i < pairs; i++) even[i] = low_of(data, i);
    for (int64_t i = 0; i < pairs; i++) odd[i] = high_of(data, i);
}

static void store_split(void *out, const float *restrict even, const float *restrict odd, int64_t pairs) {
    uint32_t words[BLOCK / 2] __attribute__((aligned(64)));
    for (int64_t i = 0; i < pairs; i++) words[i] = (uint32_t)to_bf16(even[i]) | ((uint32_t)to_bf16(odd[i]) << 16);
    stream(out, words, pairs * 4);
}

static void store(void *out, int32_t type, const float *restrict values, int64_t length) {
    uint16_t narrow[BLOCK] __attribute__((aligned(64)));
    if (type == F32) {
        stream(out, values, length * 4);
        return;
    }
    if (type == BF16) {
        for (int64_t i = 0; i < length; i++) narrow[i] = to_bf16(values[i]);
    }
#if defined(__F16C__)
    else {
        int64_t i = 0;
        for (; i + 8 <= length; i += 8)
            _mm_storeu_si128((__m128i *)(narrow + i), _mm256_cvtps_ph(_mm256_loadu_ps(values + i), 0));
        for (; i < length; i++) narrow[i] = _cvtss_sh(values[i], 0);
    }
#endif
    stream(out, narrow, length * 2);
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void copy(const Job *job, const void *data, int32_t type) {
    float values[BLOCK] __attribute__((aligned(64)));
    if (type == job->out_type) {
        memcpy(job->out, data, (size_t)(job->length * size_of(type)));
        return;
    }
    for (int64_t lo = 0; lo < job->length; lo += BLOCK) {
        int64_t length = least(BLOCK, job->length - lo);
        load(values, at(data, type, lo), type, length);
        store((char *)at(job->out, job->out_type, lo), job->out_type, values, length);
    }
}

/* Up to AT_ONCE sources that have their type and their kind in common, at one position. */
typedef struct {
    const void *data[AT_ONCE];
    float c[AT_ONCE];
    int32_t type;
    int32_t absolute;
    int width; /* 1, 2 or 4 */
} Bundle;

static inline int alike(const Source *a, const Source *b) { return a->type == b->type && a->absolute == b->absolute; }

static Bundle bundle(const Source *const *sources, int64_t left, int64_t position, float (*converted)[BLOCK],
                     int64_t length) {
    Bundle b;
    b.type = sources[0]->type;
    b.absolute = sources[0]->absolute;
    b.width = 1;
    while (b.width < AT_ONCE && b.width < left && alike(sources[0], sources[b.width])) b.width++;
    if (b.width == 3) b.width = 2;
    for (int j = 0; j < b.width; j++) {
        b.data[j] = at(sources[j]->data, b.type, position);
        b.c[j] = (float)sources[j]->coefficient;
        if (b.type == F16) {
            load(converted[j], b.data[j], F16, length);
            b.data[j] = converted[j];
        }
    }
    if (b.type == F16) b.type = F32;
    return b;
}

#define FLOAT(k) (((const float *)b.data[k])[i])
#define BRAIN(k) (from_bf16(((const uint16_t *)b.data[k])[i]))
#define EVEN(k) (low_of(b.data[k], i))
#define ODD(k) (high_of(b.data[k], i))
#define EACH for (int64_t i = 0; i < length; i++)

/* total (+)= sum over the bundle, in order, of c * (source - theta) or c * source */
#define PART(LOAD, DELTA, k) (b.c[k] * (LOAD(k) DELTA))
#define ACCUMULATE(LOAD, DELTA)                                                                                    \
    if (b.width == 4) {                                                                                            \
        if (first)                                                                                                 \
            EACH total[i] =                                                                                        \
                ((PART(LOAD, DELTA, 0) + PART(LOAD, DELTA, 1)) + PART(LOAD, DELTA, 2)) + PART(LOAD, DELTA, 3);     \
        else                                                                                                       \
            EACH total[i] = (((total[i] + PART(LOAD, DELTA, 0)) + PART(LOAD, DELTA, 1)) + PART(LOAD, DELTA, 2)) +  \
                            PART(LOAD, DELTA, 3);                                                                  \
    } else if (b.width == 2) {                                                                                     \
        if (first)                                                                                                 \
            EACH total[i] = PART(LOAD, DELTA, 0) + PART(LOAD, DELTA, 1);                                           \
        else                                                                                                       \
            EACH total[i] = (total[i] + PART(LOAD, DELTA, 0)) + PART(LOAD, DELTA, 1);                              \
    } else if (first)                                                                                              \
        EACH total[i] = PART(LOAD, DELTA, 0);                                                                      \
    else                                                                                                           \
        EACH total[i] = total[i] + PART(LOAD, DELTA, 0);

static inline int all_bf16(const Job *job, const Source *const *used, int64_t count) {
    int all = job->out_type == BF16 && job->base_type == BF16;
    for (int64_t k = 0; k < count; k++) all = all && used[k]->type == BF16;
    return all;
}

static void accumulate(float *restrict total, const float *restrict theta, Bundle b, int first, int64_t length) {
    if (b.type == F32) {
        if (b.absolute) { ACCUMULATE(FLOAT, - theta[i]) } else { ACCUMULATE(FLOAT, ) }
    } else if (b.type == BF16) {
        if (b.absolute) { ACCUMULATE(BRAIN, - theta[i]) } else { ACCUMULATE(BRAIN, ) }
    } else if (b.type == LOW) {
        if (b.absolute) { ACCUMULATE(EVEN, - theta[i]) } else { ACCUMULATE(EVEN, ) }
    } else {
        if (b.absolute) { ACCUMULATE(ODD, - theta[i]) } else { ACCUMULATE(ODD, ) }
    }
}

/* The hardware follows a stream only once it has seen it; the blocks of many streams are too short for that. */
static inline void prefetch(const void *data, int32_t type, int64_t position, int64_t length) {
    const char *first = at(data, type, position);
    for (int64_t byte = 0; byte < length * size_of(type); byte += 64) __builtin_prefetch(first + byte, 0, 2);
}

static void merge_one(const Job *job) {
    float theta[BLOCK] __attribute__((aligned(64))), total[BLOCK] __attribute__((aligned(64)));
    float converted[AT_ONCE][BLOCK] __attribute__((aligned(64)));
    const Source *used[MOST];
    int64_t active = 0;
    for (int64_t k = 0; k < job->count; k++)
        if (job->sources[k].coefficient != 0.0) used[active++] = &job->sources[k];
    if (active == 0) {
        copy(job, job->base, job->base_type);
        return;
    }
    if (active == 1 && used[0]->coefficient == 1.0 && used[0]->absolute) {
        copy(job, used[0]->data, used[0]->type);
        return;
    }
    int split = all_bf16(job, used, active);
    for (int64_t lo = 0; lo < job->length; lo += BLOCK) {
        int64_t length = least(BLOCK, job->length - lo), next = lo + AHEAD;
        int64_t ahead = next < job->length ? least(BLOCK, job->length - next) : 0;
        int64_t pairs = length / 2;
        float *odd = theta + pairs, *odd_total = total + pairs;
        split = split && length % 2 == 0; /* only a job's last block is odd */
        prefetch(job->base, job->base_type, next, ahead);
        if (split) load_split(theta, odd, at(job->base, BF16, lo), pairs);
        else load(theta, at(job->base, job->base_type, lo), job->base_type, length);
        for (int64_t k = 0; k < active;) {
            Bundle b = bundle(used + k, active - k, lo, converted, length);
            for (int j = 0; j < b.width; j++) prefetch(used[k + j]->data, used[k + j]->type, next, ahead);
            if (split) {
                b.type = LOW;
                accumulate(total, theta, b, k == 0, pairs);
                b.type = HIGH;
                accumulate(odd_total, odd, b, k == 0, pairs);
            } else {
                accumulate(total, theta, b, k == 0, length);
            }
            k += b.width;
        }
        for (int64_t i = 0; i < length; i++) total[i] = theta[i] + total[i];
        char *out = (char *)at(job->out, job->out_type, lo);
        if (split) store_split(out, total, odd_total, pairs);
        else store(out, job->out_type, total, length);
    }
}

/* lanes[k][j] += slope * delta, LANES running sums for each source of the bundle */
#define TIMES(LOAD, DELTA, k) lanes[k][j] += slope[i] * (LOAD(k) DELTA)
#define OVER for (int64_t lo = 0; lo < length; lo += LANES) for (int64_t j = 0, i = lo; j < LANES; j++, i++)
#define DOT(LOAD, DELTA)                                  \
    if (b.width == 4)                                     \
        OVER {                                            \
            TIMES(LOAD, DELTA, 0);                        \
            TIMES(LOAD, DELTA, 1);                        \
            TIMES(LOAD, DELTA, 2);                        \
            TIMES(LOAD, DELTA, 3);                        \
        }                                                 \
    else if (b.width == 2)                                \
        OVER {                                            \
            TIMES(LOAD, DELTA, 0);                        \
            TIMES(LOAD, DELTA, 1);                        \
        }                                                 \
    else                                                  \
        OVER { TIMES(LOAD, DELTA, 0); }

static void dot(float (*restrict lanes)[LANES], const float *restrict slope, const float *restrict theta, Bundle b,
                int64_t length) {
    if (b.type == F32) {
        if (b.absolute) { DOT(FLOAT, - theta[i]) } else { DOT(FLOAT, ) }
    } else if (b.type == BF16) {
        if (b.absolute) { DOT(BRAIN, - theta[i]) } else { DOT(BRAIN, ) }
    } else if (b.type == LOW) {
        if (b.absolute) { DOT(EVEN, - theta[i]) } else { DOT(EVEN, ) }
    } else {
        if (b.absolute) { DOT(ODD, - theta[i]) } else { DOT(ODD, ) }
    }
}

static void contract_one(const Job *job, double *partial) {
    float theta[BLOCK] __attribute__((aligned(64))), slope[BLOCK] __attribute__((aligned(64)));
    float converted[AT_ONCE][BLOCK] __attribute__((aligned(64)));
    const Source *used[MOST];
    for (int64_t k = 0; k < job->count; k++) {
        partial[k] = 0.0;
        used[k] = &job->sources[k];
    }
    int bf16 = all_bf16(job, used, job->count);
    for (int64_t lo = 0; lo < job->length; lo += BLOCK) {
        int64_t length = least(BLOCK, job->length - lo), next = lo + AHEAD;
        int64_t ahead = next < job->length ? least(BLOCK, job->length - next) : 0;
        int64_t whole = length / LANES * LANES;
        int split = bf16 && length == BLOCK;
        prefetch(job->out, job->out_type, next, ahead);
        prefetch(job->base, job->base_type, next, ahead);
        if (split) {
            load_split(slope, slope + BLOCK / 2, at(job->out, BF16, lo), BLOCK / 2);
            load_split(theta, theta + BLOCK / 2, at(job->base, BF16, lo), BLOCK / 2);
        } else {
            load(slope, at(job->out, job->out_type, lo), job->out_type, length);
            load(theta, at(job->base, job->base_type, lo), job->base_type, length);
        }
        for (int64_t k = 0; k < job->count;) {
            float lanes[AT_ONCE][LANES] __attribute__((aligned(64))) = {{0}};
            Bundle b = bundle(used + k, job->count - k, lo, converted, length);
            for (int j = 0; j < b.width; j++) prefetch(used[k + j]->data, used[k + j]->type, next, ahead);
            if (split) {
                b.type = LOW;
                dot(lanes, slope, theta, b, BLOCK / 2);
                b.type = HIGH;
                dot(lanes, slope + BLOCK / 2, theta + BLOCK / 2, b, BLOCK / 2);
            } else {
                dot(lanes, slope, theta, b, whole);
            }
            for (int n = 0; n < b.width; n++) {
                float rest = 0.0f;
                double sum = 0.0;
                for (int64_t i = whole; i < length; i++) {
                    float value = b.type == F32 ? ((const float *)b.data[n])[i]
                                                : from_bf16(((const uint16_t *)b.data[n])[i]);
                    rest += slope[i] * (b.absolute ? value - theta[i] : value);
                }
                for (int j = 0; j < LANES; j++) sum += (double)lanes[n][j];
                partial[k + n] += sum + (double)rest;
            }
            k += b.width;
        }
    }
}

void merge(const Job *jobs, int64_t count, int64_t *next) {
    for (;;) {
        int64_t mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (mine >= count) break;
        merge_one(&jobs[mine]);
    }
#if defined(__SSE2__)
    _mm_sfence(); /* what was streamed is visible before another thread looks */
#endif
}

/* partials: [count, width], width >= every job's number of sources */
void contract(const Job *jobs, int64_t count, int64_t *next, double *partials, int64_t width) {
    for (;;) {
        int64_t mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (mine >= count) return;
        contract_one(&jobs[mine], partials + mine * width);
    }
}

/* out[i] = tuned[i] - base[i], each as fp32 */
void subtract(float *out, const void *tuned, int32_t tuned_type, const void *base, int32_t base_type, int64_t length) {
    float origin[BLOCK] __attribute__((aligned(64)));
    for (int64_t lo = 0; lo < length; lo += BLOCK) {
        int64_t count = length - lo < BLOCK ? length - lo : BLOCK;
        load(out + lo, at(tuned, tuned_type, lo), tuned_type, count);
        load(origin, at(base, base_type, lo), base_type, count);
        for (int64_t i = 0; i < count; i++) out[lo + i] -= origin[i];
    }
}
