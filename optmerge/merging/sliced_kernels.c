/* The passes of kernels.c for parameters whose columns or rows have coefficients of their own.
 *
 *   merge_sliced:    out = cast(theta + sum_k fl(c_k * fl(theta_k - theta))), with the c_k of a value's column or row
 *   contract_sliced: sums[k][column or row] = <gradient, theta_k - theta> over it; products in fp32, sums in fp64
 *
 * A job is a matrix [rows, width] whose rows are `stride` elements apart; for a contraction by columns it is a strip of at
 * most STRIP columns. This file holds the whole library: it includes the other.
 */

#include "kernels.c"

#define FLUSH 16 /* rows whose products are summed in fp32 before they go to fp64 */
#define STRIP 2048 /* most columns of a job that is contracted by columns: no more fit on the stack */

typedef struct {
    const void *data;
    int32_t type;
    int32_t absolute;
    void *slices; /* merge: float coefficients, NULL where all are zero; contract: double sums. Per column, or per row */
} SlicedSource;

typedef struct {
    void *out; /* merge: what is written; contract: the gradient */
    const void *base;
    const SlicedSource *sources;
    int64_t rows;
    int64_t width;
    int64_t stride;
    int32_t out_type;
    int32_t base_type;
    int64_t count; /* of sources */
    int64_t across; /* 1: a coefficient for every column; 0: one for every row */
} SlicedJob;

int sliced_struct_sizes(void) { return (int)(sizeof(SlicedSource) * 1000 + sizeof(SlicedJob)); }

int most_columns(void) { return STRIP; }

/* A block of a source as fp32 or bf16; fp16 is converted first. */
static inline const void *block_of(const SlicedSource *source, int64_t position, float *converted, int64_t length,
                                   int32_t *type) {
    const void *data = at(source->data, source->type, position);
    *type = source->type;
    if (source->type != F16) return data;
    load(converted, data, F16, length);
    *type = F32;
    return converted;
}

#define WHOLE(data) (((const float *)(data))[i])
#define SHORT(data) (from_bf16(((const uint16_t *)(data))[i]))

/* DO(delta) for every value of a block */
#define DELTAS(DO)                                                       \
    if (type == F32) {                                                   \
        if (absolute) EACH { DO((WHOLE(data) - theta[i])); }             \
        else EACH { DO(WHOLE(data)); }                                   \
    } else {                                                             \
        if (absolute) EACH { DO((SHORT(data) - theta[i])); }             \
        else EACH { DO(SHORT(data)); }                                   \
    }

#define FIRST_OF_COLUMN(delta) total[i] = c[i] * delta
#define NEXT_OF_COLUMN(delta) total[i] = total[i] + c[i] * delta
#define FIRST_OF_ROW(delta) total[i] = one * delta
#define NEXT_OF_ROW(delta) total[i] = total[i] + one * delta
#define PRODUCT(delta) sum[i] += slope[i] * delta

static void add_source(float *restrict total, const float *restrict theta, const void *data, int32_t type,
                       int32_t absolute, const float *restrict c, int64_t across, int first, int64_t length) {
    const float one = c[0];
    if (across) {
        if (first) { DELTAS(FIRST_OF_COLUMN) } else { DELTAS(NEXT_OF_COLUMN) }
    } else {
        if (first) { DELTAS(FIRST_OF_ROW) } else { DELTAS(NEXT_OF_ROW) }
    }
}

static void add_products(float *restrict sum, const float *restrict slope, const float *restrict theta,
                         const void *data, int32_t type, int32_t absolute, int64_t length) {
    DELTAS(PRODUCT)
}

static void merge_sliced_one(const SlicedJob *job) {
    float theta[BLOCK] __attribute__((aligned(64))), total[BLOCK] __attribute__((aligned(64)));
    float converted[BLOCK] __attribute__((aligned(64)));
    int64_t elements = job->rows * job->stride;
    for (int64_t row = 0; row < job->rows; row++) {
        for (int64_t lo = 0; lo < job->width; lo += BLOCK) {
            int64_t length = least(BLOCK, job->width - lo), position = row * job->stride + lo;
            int64_t next = position + AHEAD, ahead = next < elements ? least(length, elements - next) : 0;
            int first = 1;
            prefetch(job->base, job->base_type, next, ahead);
            load(theta, at(job->base, job->base_type, position), job->base_type, length);
            for (int64_t k = 0; k < job->count; k++) {
                const SlicedSource *source = &job->sources[k];
                int32_t type;
                if (!source->slices) continue;
                prefetch(source->data, source->type, next, ahead);
                const float *c = (const float *)source->slices + (job->across ? lo : row);
                const void *data = block_of(source, position, converted, length, &type);
                add_source(total, theta, data, type, source->absolute, c, job->across, first, length);
                first = 0;
            }
            if (first) memcpy(total, theta, (size_t)length * 4);
            else EACH total[i] = theta[i] + total[i];
            store((char *)at(job->out, job->out_type, position), job->out_type, total, length);
        }
    }
}

/* A strip's sums stay in the second-level cache while its rows go by. */
static void contract_columns(const SlicedJob *job, int64_t from, int64_t count) {
    float theta[BLOCK] __attribute__((aligned(64))), slope[BLOCK] __attribute__((aligned(64)));
    float converted[BLOCK] __attribute__((aligned(64))), sums[AT_ONCE][STRIP] __attribute__((aligned(64)));
    memset(sums, 0, sizeof(sums));
    for (int64_t row = 0; row < job->rows; row++) {
        for (int64_t lo = 0; lo < job->width; lo += BLOCK) {
            int64_t length = least(BLOCK, job->width - lo), position = row * job->stride + lo;
            int64_t next = position + job->stride, ahead = row + 1 < job->rows ? length : 0; /* the row below */
            prefetch(job->out, job->out_type, next, ahead);
            prefetch(job->base, job->base_type, next, ahead);
            load(slope, at(job->out, job->out_type, position), job->out_type, length);
            load(theta, at(job->base, job->base_type, position), job->base_type, length);
            for (int64_t k = 0; k < count; k++) {
                const SlicedSource *source = &job->sources[from + k];
                int32_t type;
                prefetch(source->data, source->type, next, ahead);
                const void *data = block_of(source, position, converted, length, &type);
                add_products(sums[k] + lo, slope, theta, data, type, source->absolute, length);
            }
        }
        if ((row + 1) % FLUSH == 0 || row + 1 == job->rows) {
            for (int64_t k = 0; k < count; k++) {
                double *to = (double *)job->sources[from + k].slices;
                for (int64_t i = 0; i < job->width; i++) to[i] += (double)sums[k][i];
                memset(sums[k], 0, (size_t)job->width * 4);
            }
        }
    }
}

/* values[i] = delta of the source at a position */
static inline void load_delta(float *restrict values, const SlicedSource *source, int64_t position,
                              const float *restrict theta, int64_t length) {
    load(values, at(source->data, source->type, position), source->type, length);
    if (source->absolute) EACH values[i] = values[i] - theta[i];
}

static void contract_rows(const SlicedJob *job) {
    float theta[BLOCK] __attribute__((aligned(64))), slope[BLOCK] __attribute__((aligned(64)));
    float delta[BLOCK] __attribute__((aligned(64)));
    for (int64_t row = 0; row < job->rows; row++) {
        for (int64_t lo = 0; lo < job->width; lo += BLOCK) {
            int64_t length = least(BLOCK, job->width - lo), position = row * job->stride + lo;
            load(slope, at(job->out, job->out_type, position), job->out_type, length);
            load(theta, at(job->base, job->base_type, position), job->base_type, length);
            for (int64_t k = 0; k < job->count; k++) {
                float lanes[LANES] __attribute__((aligned(64))) = {0};
                double sum = 0.0;
                load_delta(delta, &job->sources[k], position, theta, length);
                for (int64_t i = length; i % LANES; i++) delta[i] = slope[i] = 0.0f; /* BLOCK is a multiple of LANES */
                for (int64_t i = 0; i < length; i += LANES)
                    for (int64_t j = 0; j < LANES; j++) lanes[j] += slope[i + j] * delta[i + j];
                for (int64_t j = 0; j < LANES; j++) sum += (double)lanes[j];
                ((double *)job->sources[k].slices)[row] += sum;
            }
        }
    }
}

void merge_sliced(const SlicedJob *jobs, int64_t count, int64_t *next) {
    for (;;) {
        int64_t mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (mine >= count) break;
        merge_sliced_one(&jobs[mine]);
    }
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

/* sums are added to what is there; no two jobs have any in common */
void contract_sliced(const SlicedJob *jobs, int64_t count, int64_t *next) {
    for (;;) {
        int64_t mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (mine >= count) return;
        const SlicedJob *job = &jobs[mine];
        if (!job->across) contract_rows(job);
        else
            for (int64_t first = 0; first < job->count; first += AT_ONCE)
                contract_columns(job, first, least(AT_ONCE, job->count - first));
    }
}
