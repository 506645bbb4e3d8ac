/* Convolution in which each sample has a sparse kernel of its own ("offset CSR").
 *
 * The padded input of a sample lies in memory channel by channel. A nonzero (c_o, c_i, k) of the kernel then reads the
 * input at a fixed distance, its offset, from every output that it contributes to:
 *
 *     y[c_o, t] = bias[c_o] + sum_j value_j * x[offset_j + t]        for one contiguous range of t
 *
 * where t counts outputs along the rows of the padded input; what falls between two rows is computed and dropped. A
 * stride s splits the input into its s phases along each axis, of which those are packed that the kernel reads. Pointwise
 * kernels have no overlap between tiles of t, so their input is packed when a tile needs it (a "panel"), which caches prefer.
 * Groups are packed and convolved one after the other: those of a depthwise layer stay in the first-level cache. The
 * values are mixed from K static kernels on the union of their patterns: no dense kernel is ever formed.
 *
 * Attention comes from Python, or is computed here from the router's weights: its few operations take less time than the
 * calls of a framework that they would need.
 *
 * Python passes the geometry as the fields of `Plan` (dynsparse/runtime/plans.py), and tensors by their addresses.
 * `Plan` is trusted: this module is private to the package.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    double low, high;       /* limits of the outputs */
    double temperature;     /* of a softmax router; 0 for one of sigmoids */
    int64_t logits;         /* of the router's first matrix: its hidden units, or K without any; 0 if attention is given */
    int64_t hidden;         /* whether there are hidden units */
    int64_t isa;            /* index into `sets` */
    int64_t kernels;        /* K */
    int64_t channels;       /* C_i */
    int64_t groups;         /* G */
    int64_t rows;           /* C_o */
    int64_t values_stride;  /* floats between the values of two static kernels; at least 16 follow the last value */
    int64_t range;          /* number of t */
    int64_t tile;           /* vector registers of a tile */
    int64_t panel;          /* floats of a channel in a panel, those of a tile; 0 where a whole group is packed at once */
    int64_t channel_stride; /* floats between two channels of the packed input */
    int64_t in_size;        /* floats of a channel of the input */
    int64_t out_size;       /* floats of a channel of the output */
    int64_t in[3], pad[3], stride[3];
    int64_t span[3];        /* extent of one phase of the packed input */
    int64_t out[3];
    int64_t phases;
    int64_t phase[][3];
} Plan;

typedef struct {
    const float *input, *attention, *fixed, *values, *bias; /* input: of the group at hand */
    float *packed, *mixed, *output;
    const int64_t *row_starts;
    const int32_t *offsets;
    int64_t row_begin, row_end;
} Sample;

/* Where a tile reads, and which of its outputs exist. */
typedef struct {
    const float *source;
    int64_t start;           /* in the range of t */
    int64_t d, h, column;    /* of the next tile's first output */
    int mixes;               /* the first tile mixes the values */
    int whole;     /* all outputs exist and are neighbours */
    int pieces;
    struct {
        int64_t to;
        int from, length;
    } piece[16 * 16];
} Tile;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Moves a tile to the `length` outputs from `start` on; tiles come in order. */
static void locate(const Plan *plan, const Sample *sample, int64_t start, int64_t length, Tile *tile) {
    const int64_t *span = plan->span, *out = plan->out, stop = least(start + length, plan->range);
    tile->source = sample->packed + (plan->panel ? 0 : start);
    tile->start = start;
    tile->mixes = start == 0 && plan->kernels > 1;
    tile->pieces = 0;
    for (int64_t t = start; t < stop;) {
        const int64_t next = least(stop, t + span[2] - tile->column);
        if (tile->column < out[2] && tile->h < out[1]) {
            tile->piece[tile->pieces].to = (tile->d * out[1] + tile->h) * out[2] + tile->column;
            tile->piece[tile->pieces].from = (int)(t - start);
            tile->piece[tile->pieces++].length = (int)least(out[2] - tile->column, next - t);
        }
        tile->column += next - t;
        if (tile->column == span[2]) {
            tile->column = 0;
            if (++tile->h == span[1]) tile->h = 0, tile->d++;
        }
        t = next;
    }
    tile->whole = tile->pieces == 1 && tile->piece[0].length == length && tile->piece[0].to == start;
}

/* memcpy for a line of an image, often too short for a call to pay. */
static inline void copy(float *to, const float *from, int64_t length) {
    for (int64_t i = 0; i + 4 <= length; i += 4) memcpy(to + i, from + i, 16);
    if (length >= 4)
        memcpy(to + length - 4, from + length - 4, 16);
    else
        for (int64_t i = 0; i < length; i++) to[i] = from[i];
}

/* Packs the tile of a pointwise kernel that starts at `start`. */
static void pack_panel(const Plan *plan, const Sample *sample, int64_t start) {
    const float *from = sample->input + start;
    const int64_t channels = plan->channels / plan->groups, length = least(plan->panel, plan->range - start);
    for (int64_t c = 0; c < channels; c++) copy(sample->packed + c * plan->panel, from + c * plan->in_size, length);
}

static inline void scatter(const Tile *tile, const float *results, float *output) {
    for (int p = 0; p < tile->pieces; p++)
        copy(output + tile->piece[p].to, results + tile->piece[p].from, tile->piece[p].length);
}

#define NAME(x) x##_baseline
#define TARGET
#define WIDTH 4
#define LARGEST 12
#include "rows.h"

#if defined(__x86_64__)
#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define WIDTH 8
#define LARGEST 12
#include "rows.h"

#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx512f,fma")))
#define WIDTH 16
#define LARGEST 16
#include "rows.h"
#endif

static const struct {
    const char *name;
    int width, largest;
    void (*convolve)(const Plan *, const Sample *);
    void (*means)(const Plan *, const float *, float *);
    void (*add_product)(const float *, int64_t, const float *, int64_t, float *);
} sets[] = {
    {"baseline", 4, 12, convolve_baseline, means_baseline, add_product_baseline}, /* SSE2 or NEON, by default */
#if defined(__x86_64__)
    {"avx2", 8, 12, convolve_avx2, means_avx2, add_product_avx2},
    {"avx512", 16, 16, convolve_avx512, means_avx512, add_product_avx512},
#endif
};

/* Every set includes the ones before it. */
static int supported_sets(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) return 3;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 2;
#endif
    return 1;
}

typedef float Four __attribute__((vector_size(16)));
typedef int32_t Lanes __attribute__((vector_size(16)));

/* Every second float, from the first one on; of `from`, `room` floats may be read. */
static inline void copy_every_second(float *to, const float *from, int64_t length, int64_t room) {
    int64_t i = 0;
    for (; 2 * i + 8 <= room && i + 4 <= length; i += 4) {
        Four low, high;
        memcpy(&low, from + 2 * i, 16);
        memcpy(&high, from + 2 * i + 4, 16);
        low = __builtin_shuffle(low, high, (Lanes){0, 2, 4, 6});
        memcpy(to + i, &low, 16);
    }
    for (; i < length; i++) to[i] = from[2 * i];
}

/* Lays one channel out in phases of equal extent, with zeros where the input is padded. */
static void pack_channel(const Plan *plan, const float *input, float *line) {
    const int64_t *in = plan->in, *span = plan->span, stride = plan->stride[2];
    memset(line, 0, plan->phases * span[0] * span[1] * span[2] * sizeof(float));
    for (int64_t p = 0; p < plan->phases; p++) {
        const int64_t shift = plan->phase[p][2] - plan->pad[2];
        const int64_t low = least(span[2], shift < 0 ? (stride - 1 - shift) / stride : 0);
        const int64_t length = most(0, least(span[2], (in[2] - shift + stride - 1) / stride) - low);
        const int64_t first = low * stride + shift;
        for (int64_t d = 0; d < span[0]; d++)
            for (int64_t h = 0; h < span[1]; h++, line += span[2]) {
                const int64_t from_d = d * plan->stride[0] + plan->phase[p][0] - plan->pad[0];
                const int64_t from_h = h * plan->stride[1] + plan->phase[p][1] - plan->pad[1];
                if (from_d < 0 || from_d >= in[0] || from_h < 0 || from_h >= in[1]) continue;
                const float *from = input + (from_d * in[1] + from_h) * in[2] + first;
                if (stride == 1)
                    copy(line + low, from, length);
                else if (stride == 2)
                    copy_every_second(line + low, from, length, in[2] - first);
                else
                    for (int64_t w = 0; w < length; w++) line[low + w] = from[w * stride];
            }
    }
}

/* Packs one group of a sample, unless its tiles are packed as they come. */
static void pack(const Plan *plan, const Sample *sample) {
    const int64_t channels = plan->channels / plan->groups;
    for (int64_t c = 0; c < channels && !plan->panel; c++)
        pack_channel(plan, sample->input + c * plan->in_size, sample->packed + c * plan->channel_stride);
}

/* Of `fixed`, the first row is everyone's. */
static void mix_bias(const Plan *plan, const float *attention, const float *fixed, float *bias) {
    memcpy(bias, fixed, plan->rows * sizeof(float));
    for (int64_t k = 0; k < plan->kernels; k++)
        for (int64_t row = 0; row < plan->rows; row++) bias[row] += attention[k] * fixed[(k + 1) * plan->rows + row];
}

/* softmax(logits / temperature), or sigmoids without a temperature. */
static void normalise(const Plan *plan, float *logits) {
    float largest = -INFINITY, sum = 0;
    for (int64_t k = 0; k < plan->kernels; k++) largest = logits[k] > largest ? logits[k] : largest;
    for (int64_t k = 0; k < plan->kernels; k++) {
        if (plan->temperature == 0)
            logits[k] = 1 / (1 + expf(-logits[k]));
        else
            sum += logits[k] = expf((logits[k] - largest) / (float)plan->temperature);
    }
    for (int64_t k = 0; k < plan->kernels && plan->temperature != 0; k++) logits[k] /= sum;
}

/* One sample's attention. `weights` are the matrices [C_i, logits] and [logits, K], the latter only with hidden units,
 * and the biases [K]; `room` takes C_i + logits + K floats, of which the last K are the result. */
static const float *attend(const Plan *plan, const float *input, const float *weights, float *room) {
    float *means = room, *first = means + plan->channels, *logits = first + plan->logits;
    const float *second = weights + plan->channels * plan->logits, *bias = second + plan->hidden * plan->logits * plan->kernels;
    sets[plan->isa].means(plan, input, means);
    memcpy(logits, bias, plan->kernels * sizeof(float));
    if (plan->hidden) {
        memset(first, 0, plan->logits * sizeof(float));
        sets[plan->isa].add_product(means, plan->channels, weights, plan->logits, first);
        for (int64_t i = 0; i < plan->logits; i++) first[i] = first[i] < 0 ? 0 : first[i];
        sets[plan->isa].add_product(first, plan->logits, second, plan->kernels, logits);
    } else
        sets[plan->isa].add_product(means, plan->channels, weights, plan->kernels, logits);
    normalise(plan, logits);
    return logits;
}

static int64_t whole_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

/* One sample's rows [begin, end), group by group. */
static void convolve_groups(const Plan *plan, const float *input, Sample *sample, int64_t begin, int64_t end) {
    const int64_t rows = plan->rows / plan->groups, floats = plan->channels / plan->groups * plan->in_size;
    for (int64_t group = begin / rows; group * rows < end; group++) {
        sample->input = input + group * floats;
        pack(plan, sample);
        sample->row_begin = most(begin, group * rows);
        sample->row_end = least(end, (group + 1) * rows);
        sets[plan->isa].convolve(plan, sample);
    }
}

/* Samples [begin, end), rows [row_begin, row_end). `room` holds a sample's bias, values, attention and packed group. */
static void convolve_samples(const Plan *plan, const float *input, const float *attention, const float *bias,
                             Sample *sample, int64_t begin, int64_t end, int64_t row_begin, int64_t row_end, float *room,
                             float *output) {
    float *values = room + whole_lines(plan->rows);
    float *attending = values + (plan->kernels > 1 ? whole_lines(plan->values_stride) : 0);
    float *packed = attending + (plan->logits ? whole_lines(plan->channels + plan->logits + plan->kernels) : 0);
    sample->bias = room;
    sample->mixed = values;
    sample->values = plan->kernels > 1 ? values : sample->fixed;
    sample->packed = packed;
    for (int64_t b = begin; b < end; b++) {
        const float *one = input + b * plan->channels * plan->in_size;
        sample->attention = plan->logits ? attend(plan, one, attention, attending) : attention + b * plan->kernels;
        sample->output = output + b * plan->rows * plan->out_size;
        mix_bias(plan, sample->attention, bias, room);
        convolve_groups(plan, one, sample, row_begin, row_end);
    }
}

static PyObject *convolve(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer plan;
    unsigned long long input, attention, fixed, bias, row_starts, offsets, room, output;
    Py_ssize_t begin, end, row_begin, row_end;
    if (!PyArg_ParseTuple(args, "y*KKKKKKKK(nn)(nn)", &plan, &input, &attention, &fixed, &bias, &row_starts, &offsets,
                          &room, &output, &begin, &end, &row_begin, &row_end))
        return NULL;
    Sample sample = {
        .fixed = (const float *)(uintptr_t)fixed,
        .row_starts = (const int64_t *)(uintptr_t)row_starts,
        .offsets = (const int32_t *)(uintptr_t)offsets,
    };
    Py_BEGIN_ALLOW_THREADS
    convolve_samples(plan.buf, (const float *)(uintptr_t)input, (const float *)(uintptr_t)attention,
                     (const float *)(uintptr_t)bias, &sample, begin, end, row_begin, row_end,
                     (float *)(uintptr_t)room, (float *)(uintptr_t)output);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&plan);
    Py_RETURN_NONE;
}

static PyObject *instruction_sets(PyObject *module, PyObject *nothing) {
    (void)module, (void)nothing;
    const int count = supported_sets();
    PyObject *found = PyList_New(0);
    for (int i = 0; found && i < count; i++) {
        PyObject *set = Py_BuildValue("(sii)", sets[i].name, sets[i].width, sets[i].largest);
        if (!set || PyList_Append(found, set)) Py_CLEAR(found);
        Py_XDECREF(set);
    }
    return found;
}

static PyMethodDef methods[] = {
    {"convolve", convolve, METH_VARARGS,
     "convolve(plan, input, attention, values, bias, row_starts, offsets, room, output, samples, rows)\n\n"
     "Writes the outputs of a range of samples and rows; tensors are given by their addresses; "
     "`attention` is the router's weights where the plan has a router."},
    {"instruction_sets", instruction_sets, METH_NOARGS,
     "instruction_sets()\n\nNames of the sets that this processor has, the best one last, with the floats of a vector and the "
     "vectors of the largest tile."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "dynsparse._kernel", .m_doc = "Convolution with a sparse kernel of its own for each sample.",
    .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&definition); }
