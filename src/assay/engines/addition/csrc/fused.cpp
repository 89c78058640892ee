// The C interface of the fused kernel, its threads, and the list of shapes that are compiled.
//
// A seed's batch is divided into fixed tiles; every tile has gradient buffers of its own, and they
// are added up in order. So the result of a seed depends neither on the other seeds of a call nor
// on the number of threads.
#include <memory>
#include <new>
#include <vector>

#include "group.h"
#include "library.h"
#ifndef NUMBER_IS_DOUBLE
#include "identity.h"
#endif

namespace {

// Aligned memory that is kept between calls of one thread, for one purpose: fresh pages cost more
// than the sums.
template <class Purpose>
char* scratch(size_t bytes) {
    static thread_local std::unique_ptr<char, void (*)(void*)> kept(nullptr, std::free);
    static thread_local size_t size = 0;
    if (bytes > size) {
        kept.reset(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
        size = bytes;
    }
    return kept.get();
}

// Results below the smallest normal number become zero: arithmetic with them is a hundred times
// slower, and a saturated softmax is full of them.
struct FlushDenormals {
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

template <class T, int D, int H, int W>
struct Kernel {
    static constexpr int N = Simd<T>::N;
    typedef typename Simd<T>::V V;
    typedef typename Simd<T>::I I;
    typedef Table<T, D, H, W> Tables;
    typedef Group<T, D, H, W> Groups;

    const Problem& p;
    const Offsets at;
    const Cells<N> cells;
    const size_t keys, queries;  // numbers in the accumulators of cells

    explicit Kernel(const Problem& problem)
        : p(problem), at(problem), cells(problem),
          keys(size_t(cells.start[p.num_positions]) * N * FEATURES),
          queries(keys - size_t(cells.start[p.num_positions - p.num_rows]) * N * FEATURES) {}

    // Of one thread. A Group needs no destructor.
    struct Memory {
        alignas(Groups) char group[sizeof(Groups)];
        typename Groups::Gradients gradients;
    };

    // Size of a tile's result: [key | value] by cell, [query | x] by cell, dense row, loss.
    size_t partial() const { return keys + queries + (at.size + 1 + 15) / 16 * 16; }

    void tile(const T* w, const Tables& table, const double* a, const double* b, int count,
              Memory& memory, T* out) const {
        const FlushDenormals flush;
        auto* group = new (&memory.group) Groups(p, at, cells, w, table);
        auto* g = &memory.gradients;
        g->clear(p.hidden, p.vocabulary);
        std::memset(out, 0, partial() * sizeof(T));
        g->kv = out;
        g->qx = out + keys;
        T* dense = out + keys + queries;
        group->loss_sum = V{};
        group->loss_product = fill<V>(1);
        T loss = 0;
        for (int begin = 0; begin < count; begin += N) {
            const int real = std::min(N, count - begin);
            group->load(a + begin, b + begin, real);
            group->train(*g);
            for (int i = 0; i < real; i++) loss += group->loss_sum[i];
            group->loss_sum = V{};
        }
        collect(*g, dense);
        dense[at.size] = loss;
    }

    void collect(const typename Groups::Gradients& g, T* dense) const {
        const int f = p.hidden;
        auto put = [dense](int place, const V* from, int count) {
            for (int i = 0; i < count; i++) dense[place + i] = sum(from[i]);
        };
        put(at.out, g.out, H * W * D), put(at.out_bias, g.out_bias, D), put(at.norm2, g.norm2, 2 * D);
        put(at.up_bias, g.up_bias, f), put(at.down, g.down, f * D), put(at.down_bias, g.down_bias, D);
        put(at.norm_f, g.norm_f, 2 * D), put(at.head, g.head, p.vocabulary * D);
        for (int j = 0; j < f; j++)
            for (int d = 0; d < D; d++) {
                dense[at.up + d * f + j] = sum(g.up[j * D + d]);
                if (p.gated) dense[at.gate + d * f + j] = sum(g.gate[j * D + d]);
            }
        if (p.gated) put(at.gate_bias, g.gate_bias, f);
    }

    // Add the tiles of one seed in order, and go on to the embeddings.
    void reduce(const T* w, Tables& table, T* parts, int tiles, int batch, double* loss,
                T* grad) const {
        const size_t size = partial();
        T* whole = parts;
        double total = parts[keys + queries + at.size];
        for (int tile = 1; tile < tiles; tile++) {
            const T* part = parts + tile * size;
            for (size_t i = 0; i < size; i++) whole[i] += part[i];
            total += part[keys + queries + at.size];
        }
        T* dense = whole + keys + queries;
        table.backward(w, dense, whole, whole + keys);
        const double examples = double(batch) * p.num_rows;
        for (int i = 0; i < at.size; i++) grad[i] = T(dense[i] / examples);
        *loss = total / examples;
    }

    void step(const T* dense, const double* a, const double* b, int seeds, int batch, int threads,
              double* loss, T* grad) const {
        const int tiles = (batch + TILE - 1) / TILE;
        // As many seeds together as keep every thread busy, and no more: buffers stay small.
        const int chunk = std::min(seeds, std::max(1, 2 * threads));
        T* parts = reinterpret_cast<T*>(scratch<T>(partial() * tiles * chunk * sizeof(T)));
        auto* memory = reinterpret_cast<Memory*>(scratch<Kernel>(threads * sizeof(Memory)));
        std::vector<std::unique_ptr<Tables>> tables(chunk);
        for (auto& table : tables) table = std::make_unique<Tables>(p, at, cells);
        for (int s0 = 0; s0 < seeds; s0 += chunk) {
            const int now = std::min(chunk, seeds - s0);
            for (int s = 0; s < now; s++) tables[s]->forward(dense + size_t(s0 + s) * at.size);
            spread(now * tiles, threads, [&](int item, int worker) {
                const int s = item / tiles, t = item % tiles;
                const size_t from = size_t(s0 + s) * batch + size_t(t) * TILE;
                tile(dense + size_t(s0 + s) * at.size, *tables[s], a + from, b + from,
                     std::min(TILE, batch - t * TILE), memory[worker], parts + item * partial());
            });
            for (int s = 0; s < now; s++)
                reduce(dense + size_t(s0 + s) * at.size, *tables[s], parts + s * tiles * partial(),
                       tiles, batch, loss + s0 + s, grad + size_t(s0 + s) * at.size);
        }
    }

    void judge(const T* dense, const double* a, const double* b, int count, int threads,
               int32_t* wrong, double* loss) const {
        Tables table(p, at, cells);
        table.forward(dense);
        const int block = 1024, blocks = (count + block - 1) / block;
        std::vector<double> sums(blocks);
        auto* memory = reinterpret_cast<Memory*>(scratch<Kernel>(threads * sizeof(Memory)));
        spread(blocks, threads, [&](int item, int worker) {
            const FlushDenormals flush;
            auto* group = new (&memory[worker].group) Groups(p, at, cells, dense, table);
            const int end = std::min(count, (item + 1) * block);
            group->loss_product = fill<V>(1);
            for (int begin = item * block; begin < end; begin += N) {
                const int real = std::min(N, end - begin);
                I bits;
                group->loss_sum = V{};
                group->load(a + begin, b + begin, real);
                group->judge(bits);
                for (int i = 0; i < real; i++) {
                    wrong[begin + i] = static_cast<int32_t>(bits[i]);
                    sums[item] += group->loss_sum[i];
                }
            }
        });
        *loss = 0;
        for (double part : sums) *loss += part;
    }
};

// Whether all operands are whole numbers of ten digits: tables are read at their digits.
bool are_operands(const double* x, size_t count) {
    int wrong = 0;
    for (size_t i = 0; i < count; i++)
        wrong |= !(x[i] >= 0) | !(x[i] < 1e10) | (std::floor(x[i]) != x[i]);
    return !wrong;
}

// What a call returns.
enum Outcome { DONE, NO_KERNEL, NO_OPERANDS };

// Calls `use` with the kernel compiled for the shape; false if there is none.
template <class T, class Use>
bool with_kernel(const Problem& p, const Use& use) {
    const int d = p.width, h = p.heads, w = p.head_width;
    if (p.num_rows > MAX_ROWS || p.num_rows > p.num_positions || p.hidden > MAX_HIDDEN ||
        p.num_positions > MAX_POSITIONS || p.vocabulary > MAX_VOCABULARY)
        return false;
#define SHAPE(D, H, W)                                   \
    if (d == D && h == H && w == W) {                    \
        use(Kernel<T, D, H, W>(p));                      \
        return true;                                     \
    }
#include "shapes.h"
#undef SHAPE
    return false;
}

}  // namespace

extern "C" {

#define ENTRY(T, SUFFIX)                                                                          \
    int assay_step_##SUFFIX(const Problem* p, const T* dense, const double* a, const double* b,   \
                            int seeds, int batch, int threads, double* loss, T* grad) {           \
        const size_t count = size_t(seeds) * batch;                                               \
        if (!are_operands(a, count) || !are_operands(b, count)) return NO_OPERANDS;               \
        const bool known = with_kernel<T>(*p, [&](const auto& kernel) {                           \
            kernel.step(dense, a, b, seeds, batch, std::max(threads, 1), loss, grad);             \
        });                                                                                       \
        return known ? DONE : NO_KERNEL;                                                          \
    }                                                                                             \
    int assay_judge_##SUFFIX(const Problem* p, const T* dense, const double* a, const double* b,  \
                             int count, int threads, int32_t* wrong, double* loss) {              \
        if (!are_operands(a, count) || !are_operands(b, count)) return NO_OPERANDS;               \
        const bool known = with_kernel<T>(*p, [&](const auto& kernel) {                           \
            kernel.judge(dense, a, b, count, std::max(threads, 1), wrong, loss);                  \
        });                                                                                       \
        return known ? DONE : NO_KERNEL;                                                          \
    }

#ifdef NUMBER_IS_DOUBLE
ENTRY(double, f64)
#else
ENTRY(float, f32)

int assay_sizes(int32_t* out) {
    out[0] = sizeof(Problem), out[1] = MAX_POSITIONS, out[2] = MAX_VOCABULARY, out[3] = MAX_HIDDEN;
    return 0;
}

// 1 if a kernel of this shape is compiled.
int assay_supports(const Problem* p) {
    return with_kernel<float>(*p, [](const auto&) {});
}
#endif
}
