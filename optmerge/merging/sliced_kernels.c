/* The passes of kernels.c for parameters whose columns or rows have coefficients of their own.
 *
 *   merge_sliced:    out = cast(theta + sum_k fl(c_k * fl(theta_k - theta))), with the c_k of a value's column or row
 *   contract_sliced: sums[k][column or row] = <gradient, theta_k - theta> over it; products in fp32, sums in fp64
 *
 * A job is a matrix [rows, width] whose rows are `stride` elements apart. For a contraction by columns it is a strip of at
 * most BLOCK columns, whose sums stay in the first-level cache while the rows go by. This file holds the whole library:
 * it includes the other.
 */

#include "kernels.c"

#define FLUSH 16 /* rows whose products are summed in fp32 before they go to fp64 */
#define STRIPS 8 /* sources of a strip at a time */

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

/* values[i] = delta of the source at a position */
static inline void load_delta(float *restrict values, const SlicedSource *source, int64_t position,
                              const float *restrict theta, int64_t length) {
    load(values, at(source->data, source->type, position), source->type, length);
    if (source->absolute) EACH values[i] = values[i] - theta[i];
}

static void merge_sliced_one(const SlicedJob *job) {
    float theta[BLOCK] __attribute__((aligned(64))), total[BLOCK] __attribute__((aligned(64)));
    float delta[BLOCK] __attribute__((aligned(64)));
    for (int64_t row = 0; row < job->rows; row++) {
        for (int64_t lo = 0; lo < job->width; lo += BLOCK) {
            int64_t length = least(BLOCK, job->width - lo), position = row * job->stride + lo;
            int first = 1;
            load(theta, at(job->base, job->base_type, position), job->base_type, length);
            for (int64_t k = 0; k < job->count; k++) {
                const SlicedSource *source = &job->sources[k];
                if (!source->slices) continue;
                const float *c = (const float *)source->slices + (job->across ? lo : row);
                load_delta(delta, source, position, theta, length);
                if (job->across) EACH delta[i] = c[i] * delta[i];
                else EACH delta[i] = c[0] * delta[i];
                if (first) memcpy(total, delta, (size_t)length * 4);
                else EACH total[i] = total[i] + delta[i];
                first = 0;
            }
            if (first) memcpy(total, theta, (size_t)length * 4);
            else EACH total[i] = theta[i] + total[i];
            store((char *)at(job->out, job->out_type, position), job->out_type, total, length);
        }
    }
}

static void contract_columns(const SlicedJob *job, int64_t first, int64_t count) {
    float theta[BLOCK] __attribute__((aligned(64))), slope[BLOCK] __attribute__((aligned(64)));
    float delta[BLOCK] __attribute__((aligned(64))), sums[STRIPS][BLOCK] __attribute__((aligned(64)));
    int64_t length = job->width;
    memset(sums, 0, sizeof(sums));
    for (int64_t row = 0; row < job->rows; row++) {
        int64_t position = row * job->stride;
        load(slope, at(job->out, job->out_type, position), job->out_type, length);
        load(theta, at(job->base, job->base_type, position), job->base_type, length);
        for (int64_t k = 0; k < count; k++) {
            float *restrict sum = sums[k];
            load_delta(delta, &job->sources[first + k], position, theta, length);
            EACH sum[i] += slope[i] * delta[i];
        }
        if ((row + 1) % FLUSH == 0 || row + 1 == job->rows) {
            for (int64_t k = 0; k < count; k++) {
                double *to = (double *)job->sources[first + k].slices;
                EACH to[i] += (double)sums[k][i];
            }
            memset(sums, 0, sizeof(sums));
        }
    }
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
            for (int64_t first = 0; first < job->count; first += STRIPS)
                contract_columns(job, first, least(STRIPS, job->count - first));
    }
}
