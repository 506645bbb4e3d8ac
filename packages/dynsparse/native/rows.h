/* The loop over rows for one instruction set. kernel.c includes this file once per set and defines before it
 *
 *   NAME(x)   the names of this set's functions
 *   TARGET    the attribute that lets the compiler use the set
 *   WIDTH     floats of a vector register
 *   LARGEST   registers that hold the sums of a tile, 12 or 16; the set must have four more
 */

typedef float NAME(vector) __attribute__((vector_size(4 * WIDTH)));
typedef int32_t NAME(bits) __attribute__((vector_size(4 * WIDTH)));
typedef float NAME(unaligned) __attribute__((vector_size(4 * WIDTH), aligned(4)));
#define VECTOR NAME(vector)
#define SPREAD(value) ((value) - (VECTOR){0})
#define LOAD(address) ((VECTOR) * (const NAME(unaligned) *)(address))
#define STORE(address, value) (*(NAME(unaligned) *)(address) = (value))
#define CHOOSE(test, yes, no) ((VECTOR)(((test) & (NAME(bits))(yes)) | (~(test) & (NAME(bits))(no))))
#define UNROLLED _Pragma("GCC unroll 16") for (int i = 0; i < tile; i++)

/* Mixes the static values of nonzeros [begin, end) by the sample's attention. */
TARGET static inline void NAME(mix)(const Plan *plan, const Sample *sample, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; j += WIDTH) { /* beyond `end` lie nonzeros of the next row, or padding */
        const float *fixed = sample->fixed + j;
        VECTOR sum = sample->attention[0] * LOAD(fixed);
        for (int64_t k = 1; k < plan->kernels; k++) sum += sample->attention[k] * LOAD(fixed += plan->values_stride);
        STORE(sample->mixed + j, sum);
    }
}

/* Limits to [low, high]; a NaN stays one. */
TARGET static inline VECTOR NAME(clamp)(VECTOR x, VECTOR low, VECTOR high) {
    x = CHOOSE(x < low, low, x);
    return CHOOSE(x > high, high, x);
}

/* One tile of all rows: its sums stay in registers while the nonzeros of a row pass by. */
TARGET static inline __attribute__((always_inline)) void NAME(tile)(const int tile, const Plan *plan, const Sample *sample,
                                                                    const Tile *place) {
    const float *source = place->source, *values = sample->values;
    const int32_t *offsets = sample->offsets;
    const VECTOR low = SPREAD((float)plan->low), high = SPREAD((float)plan->high);
    for (int64_t row = sample->row_begin; row < sample->row_end; row++) {
        const int64_t begin = sample->row_starts[row], end = sample->row_starts[row + 1];
        if (place->mixes) NAME(mix)(plan, sample, begin, end);
        VECTOR sums[LARGEST], others[LARGEST];
        int64_t j = begin;
        UNROLLED sums[i] = SPREAD(sample->bias[row]);
        if (2 * tile <= LARGEST) { /* few sums would wait for themselves: two nonzeros at a time */
            UNROLLED others[i] = SPREAD(0);
            for (; j + 1 < end; j += 2) {
                const float *one = source + offsets[j], *other = source + offsets[j + 1];
                UNROLLED sums[i] += values[j] * LOAD(one + i * WIDTH);
                UNROLLED others[i] += values[j + 1] * LOAD(other + i * WIDTH);
            }
            UNROLLED sums[i] += others[i];
        }
        for (; j < end; j++) {
            const float *one = source + offsets[j];
            UNROLLED sums[i] += values[j] * LOAD(one + i * WIDTH);
        }
        float results[LARGEST * WIDTH], *output = sample->output + row * plan->out_size;
        float *to = place->whole ? output + place->start : results;
        UNROLLED STORE(to + i * WIDTH, NAME(clamp)(sums[i], low, high));
        if (!place->whole) scatter(place, results, output);
    }
}

/* All tiles of a sample. */
TARGET static void NAME(convolve)(const Plan *plan, const Sample *sample) {
    Tile place;
    place.d = place.h = place.column = 0;
    const int64_t vectors = (plan->range + WIDTH - 1) / WIDTH;
    for (int64_t done = 0; done < vectors; done += plan->tile) {
        const int size = (int)least(plan->tile, vectors - done);
        if (plan->panel) pack_panel(plan, sample, done * WIDTH);
        locate(plan, sample, done * WIDTH, size * WIDTH, &place);
        switch (size) {
#define CASE(n) \
    case n: NAME(tile)(n, plan, sample, &place); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#if LARGEST == 16
            CASE(13) CASE(14) CASE(15) CASE(16)
#endif
#undef CASE
        }
    }
}

/* The mean of every channel of a sample. */
TARGET static void NAME(means)(const Plan *plan, const float *input, float *means) {
    for (int64_t c = 0; c < plan->channels; c++, input += plan->in_size) {
        VECTOR sums[4] = {{0}, {0}, {0}, {0}};
        int64_t i = 0;
        for (; i + 4 * WIDTH <= plan->in_size; i += 4 * WIDTH)
            for (int part = 0; part < 4; part++) sums[part] += LOAD(input + i + part * WIDTH);
        sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        float sum = 0;
        for (int lane = 0; lane < WIDTH; lane++) sum += sums[0][lane];
        for (; i < plan->in_size; i++) sum += input[i];
        means[c] = sum / (float)plan->in_size;
    }
}

/* y += x matrix, for a matrix of `rows` rows of `columns`. */
TARGET static void NAME(add_product)(const float *x, int64_t rows, const float *matrix, int64_t columns, float *y) {
    for (int64_t row = 0; row < rows; row++, matrix += columns)
        for (int64_t column = 0; column < columns; column++) y[column] += x[row] * matrix[column];
}

#undef NAME
#undef TARGET
#undef WIDTH
#undef LARGEST
#undef VECTOR
#undef SPREAD
#undef LOAD
#undef STORE
#undef CHOOSE
#undef UNROLLED
