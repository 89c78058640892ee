// The C interface of the swarm's kernel: encode, one optimizer step, combine, signed step.
//
// The unit of work is a band: one row of chunks over the whole width of a tensor. A band lies in one
// piece, fits into the second cache, and is read from memory once; no band depends on another, so
// neither the number of threads nor the other tensors of a stack change a result.
#include <memory>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "identity.h"
#include "library.h"
#include "transform.h"

// A stack [count, rows, columns] in chunks [a, b]; mirrored in fused.py.
struct Cut {
    int64_t count, rows, columns, a, b, k;

    int64_t height() const { return rows / a; }
    int64_t width() const { return columns / b; }
    int64_t chunks() const { return count * height() * width(); }
    bool fits() const {
        return count >= 0 && a > 0 && b > 0 && a <= MOST && b <= MOST && k > 0 && k <= a * b &&
               rows > 0 && columns > 0 && rows % a == 0 && columns % b == 0 &&
               count * rows < INT32_MAX;
    }
};

// What the clients of one tier sent for a stack: [chunks, terms], `peers` clients after each other.
struct Source {
    Cut cut;
    const int64_t* idx;
    const float* val;
    int64_t terms, peers;
};

// How sources are combined: `mean`: a coefficient is divided by how many sent it; `elements`: an
// element by how many sent something for its chunk; `over`: all by this number. The result is stored
// at `rows[0]`, or, if `step`, each of the `count` rows goes -lr times it, or times its sign.
struct Sink {
    float* const* rows;
    int64_t count;
    int32_t mean, elements, step, sign;
    float over, lr;
};

namespace {

enum Outcome { DONE, NO_CUT, NO_PLACE };

bool are_places(const int64_t* idx, int64_t count, int64_t places) {
    bool wrong = false;
    for (int64_t i = 0; i < count; i++) wrong |= uint64_t(idx[i]) >= uint64_t(places);
    return !wrong;
}

bool is_zero(const float* x, int64_t rows, int64_t columns, int64_t row) {
    for (int64_t r = 0; r < rows; r++) {
        const bits32* bits = (const bits32*)(x + r * row);
        int32_t seen = 0;
        for (int64_t c = 0; c < columns; c++) seen |= bits[c] & INT32_MAX;
        if (seen) return false;
    }
    return true;
}

bool is_silent(const float* val, int64_t count) { return is_zero(val, 1, count, 0); }

// Asks for large pages below memory that is about to be written for the first time: to get it in
// small ones takes longer than what is computed here.
void expect_writes(float* to, int64_t size) {
#if defined(__linux__)
    constexpr uintptr_t PAGE = 1 << 21;
    const uintptr_t from = (uintptr_t(to) + PAGE - 1) / PAGE * PAGE;
    const uintptr_t end = uintptr_t(to + size) / PAGE * PAGE;
    if (from < end) madvise((void*)from, end - from, MADV_HUGEPAGE);
#endif
}

float sign(float x) { return float((x > 0) - (x < 0)); }

// Kept by each worker through a call.
struct Worker {
    Workspace work;
    std::vector<float> band, count;
    alignas(64) float piece[MOST * MOST];
};

template <class Work>
void over_bands(const Cut& all, int64_t band_rows, int threads, const Work& work) {
    const int64_t bands = all.count * ((all.rows + band_rows - 1) / band_rows);
    // To wake a thread costs more than few numbers.
    const int64_t useful = 1 + all.count * all.rows * all.columns / (1 << 18);
    threads = int(std::min({int64_t(threads), bands, useful}));
    threads = std::max(threads, 1);
    std::vector<std::unique_ptr<Worker>> workers(threads);
    spread(int(bands), threads, [&](int band, int worker) {
        if (!workers[worker]) workers[worker] = std::make_unique<Worker>();
        work(band, *workers[worker]);
    });
}

// One step of a band: delta = (delta - own) * decay + lr * gradient. Where all are zero nothing is
// written: most of an embedding table.
void update(float* delta, const float* gradient, const float* own, int64_t size, float decay, float lr) {
    constexpr int64_t BLOCK = 256;
    for (int64_t from = 0; from < size; from += BLOCK) {
        const int64_t now = std::min(BLOCK, size - from);
        float* d = delta + from;
        const float* g = gradient + from;
        if (own) {
            const float* o = own + from;
            for (int64_t i = 0; i < now; i++) d[i] = (d[i] - o[i]) * decay + lr * g[i];
        } else if (!is_zero(d, 1, now, 0) || !is_zero(g, 1, now, 0)) {
            for (int64_t i = 0; i < now; i++) d[i] = d[i] * decay + lr * g[i];
        }
    }
}

// The largest coefficients of a band's chunks; `left`, if given, is the band, and loses them.
void encode_band(const Cut& cut, const Chunk& chunk, const float* band, float* left, Workspace& w,
                 int64_t* idx, float* val) {
    for (int64_t c = 0; c < cut.width(); c++, idx += cut.k, val += cut.k) {
        const float* x = band + c * cut.b;
        if (is_zero(x, cut.a, cut.b, cut.columns)) {
            for (int64_t n = 0; n < cut.k; n++) idx[n] = n, val[n] = 0;
            continue;
        }
        transform(chunk, x, cut.columns, w);
        largest(chunk, w, idx, val);
        if (left)
            back(chunk, idx, val, int(cut.k), false, cut.columns, left + c * cut.b, w,
                 [](float& to, float value) { to -= value; });
    }
}

// What the band's coefficients stand for, into `band`; false if that is nothing.
bool decode_band(const Cut& cut, const Chunk& chunk, const int64_t* idx, const float* val, float* band,
                 Workspace& w) {
    if (is_silent(val, cut.width() * cut.k)) return false;
    for (int64_t c = 0; c < cut.width(); c++, idx += cut.k, val += cut.k)
        back(chunk, idx, val, int(cut.k), false, cut.columns, band + c * cut.b, w,
             [](float& to, float value) { to = value; });
    return true;
}

// The part of a stack's sum that one band of it gets.
struct Combine {
    const Source* sources;
    int64_t number;
    const Cut& to;  // only count, rows and columns
    const Sink& sink;
    int64_t band_rows;  // a chunk's, or all where the sources' chunks differ

    // Adds what a source has for rows [from, until) of a tensor; false if that is nothing.
    bool add(const Source& s, int64_t tensor, int64_t from, int64_t until, Worker& worker) const {
        const Cut& cut = s.cut;
        const Chunk chunk(int(cut.a), int(cut.b), int(cut.k));
        const int64_t last = std::min(until, cut.rows), end = std::min(to.columns, cut.columns);
        bool live = false;
        for (int64_t r = from; r < last; r += cut.a)
            for (int64_t c = 0; c < end; c += cut.b) {
                const int64_t at = (tensor * cut.height() + r / cut.a) * cut.width() + c / cut.b;
                const float* val = s.val + at * s.terms;
                if (is_silent(val, s.terms)) continue;
                if (!live) start(worker, (until - from) * to.columns), live = true;
                back(chunk, s.idx + at * s.terms, val, int(s.terms), sink.mean, MOST, worker.piece,
                     worker.work, [](float& x, float value) { x = value; });
                int senders = 0;
                for (int64_t p = 0, k = s.terms / s.peers; p < s.peers; p++)
                    senders += !is_silent(val + p * k, k);
                const int64_t rows = std::min(cut.a, last - r), columns = std::min(cut.b, end - c);
                for (int64_t i = 0; i < rows; i++) {
                    const int64_t place = (r - from + i) * to.columns + c;
                    float* sum = worker.band.data() + place;
                    for (int64_t j = 0; j < columns; j++) sum[j] += worker.piece[i * MOST + j];
                    if (sink.elements) {
                        float* count = worker.count.data() + place;
                        for (int64_t j = 0; j < columns; j++) count[j] += float(senders);
                    }
                }
            }
        return live;
    }

    void start(Worker& worker, int64_t size) const {
        if (!worker.band.empty()) return;
        worker.band.assign(size, 0);
        if (sink.elements) worker.count.assign(size, 0);
    }

    void band(int64_t number_of_band, Worker& worker) const {
        const int64_t bands = (to.rows + band_rows - 1) / band_rows;
        const int64_t tensor = number_of_band / bands, from = number_of_band % bands * band_rows;
        const int64_t until = std::min(to.rows, from + band_rows);
        const int64_t size = (until - from) * to.columns;
        const size_t begin = (tensor * to.rows + from) * to.columns;
        worker.band.clear(), worker.count.clear();
        bool live = false;
        for (int64_t s = 0; s < number; s++) live |= add(sources[s], tensor, from, until, worker);
        float* x = worker.band.data();
        if (!live) {
            if (!sink.step) std::memset(sink.rows[0] + begin, 0, size * sizeof(float));
            return;
        }
        if (sink.elements)
            for (int64_t i = 0; i < size; i++) x[i] /= std::max(worker.count[i], 1.0f);
        else if (sink.over != 1)
            for (int64_t i = 0; i < size; i++) x[i] /= sink.over;
        if (sink.sign)
            for (int64_t i = 0; i < size; i++) x[i] = sign(x[i]);
        if (!sink.step) std::memcpy(sink.rows[0] + begin, x, size * sizeof(float));
        for (int64_t n = 0; n < (sink.step ? sink.count : 0); n++) {
            float* row = sink.rows[n] + begin;
            for (int64_t i = 0; i < size; i++) row[i] -= sink.lr * x[i];
        }
    }
};

}  // namespace

extern "C" {

// Places and values [chunks, k] of a stack.
int swarm_encode(const Cut* cut, const float* stack, int threads, int64_t* idx, float* val) {
    if (!cut->fits()) return NO_CUT;
    const Chunk chunk(int(cut->a), int(cut->b), int(cut->k));
    const int64_t size = cut->a * cut->columns, kept = cut->width() * cut->k;
    over_bands(*cut, cut->a, threads, [&](int64_t band, Worker& worker) {
        encode_band(*cut, chunk, stack + band * size, nullptr, worker.work, idx + band * kept,
                    val + band * kept);
    });
    return DONE;
}

// delta = (delta - decoded own) * decay + lr * gradient; its largest coefficients; if at_once, delta
// loses them.
int swarm_step(const Cut* cut, float* delta, const float* gradient, const int64_t* own_idx,
               const float* own_val, float decay, float lr, int at_once, int threads, int64_t* idx,
               float* val) {
    if (!cut->fits()) return NO_CUT;
    if (own_idx && !are_places(own_idx, cut->chunks() * cut->k, cut->a * cut->b)) return NO_PLACE;
    const Chunk chunk(int(cut->a), int(cut->b), int(cut->k));
    const int64_t size = cut->a * cut->columns, kept = cut->width() * cut->k;
    over_bands(*cut, cut->a, threads, [&](int64_t band, Worker& worker) {
        float* d = delta + band * size;
        const int64_t at = band * kept;
        worker.band.resize(size);
        const bool own = own_idx && decode_band(*cut, chunk, own_idx + at, own_val + at,
                                                worker.band.data(), worker.work);
        update(d, gradient + band * size, own ? worker.band.data() : nullptr, size, decay, lr);
        encode_band(*cut, chunk, d, at_once ? d : nullptr, worker.work, idx + at, val + at);
    });
    return DONE;
}

// Out of what the clients sent, the update of a stack; stored or applied, as the sink says.
int swarm_combine(const Cut* to, const Source* sources, int number, const Sink* sink, int threads) {
    if (to->rows <= 0 || to->columns <= 0) return NO_CUT;
    int64_t band_rows = number ? sources[0].cut.a : to->rows;
    for (int s = 0; s < number; s++) {
        const Source& source = sources[s];
        if (!source.cut.fits() || source.cut.count != to->count || source.peers < 1 ||
            source.terms < source.peers || source.terms % source.peers || source.terms > INT32_MAX)
            return NO_CUT;
        if (!are_places(source.idx, source.cut.chunks() * source.terms, source.cut.a * source.cut.b))
            return NO_PLACE;
        if (source.cut.a != band_rows) band_rows = to->rows;
    }
    if (!sink->step) expect_writes(sink->rows[0], to->count * to->rows * to->columns);
    const Combine combine{sources, number, *to, *sink, band_rows};
    over_bands(*to, band_rows, threads,
               [&](int64_t band, Worker& worker) { combine.band(band, worker); });
    return DONE;
}

// to = from - lr * sign(direction).
int swarm_signed_step(const float* from, const float* direction, int64_t size, float lr, int threads,
                      float* to) {
    constexpr int64_t BLOCK = 1 << 16;
    expect_writes(to, size);
    spread(int((size + BLOCK - 1) / BLOCK), threads, [&](int block, int) {
        const int64_t end = std::min(size, (block + 1) * BLOCK);
        for (int64_t i = block * BLOCK; i < end; i++) to[i] = from[i] - lr * sign(direction[i]);
    });
    return DONE;
}

}
