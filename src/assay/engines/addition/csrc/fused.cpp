// The C interface of the fused kernel, its threads, and the list of shapes that are compiled.
//
// A seed's batch is divided into fixed tiles; every tile has gradient buffers of its own, and they
// are added up in order. So the result of a seed depends neither on the other seeds of a call nor
// on the number of threads.
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "group.h"

namespace {

template <class Work>
void spread(int count, int threads, const Work& work) {
    if (threads <= 1 || count <= 1) {
        for (int i = 0; i < count; i++) work(i);
        return;
    }
    std::atomic<int> next{0};
    auto loop = [&] {
        for (int i; (i = next.fetch_add(1)) < count;) work(i);
    };
    std::vector<std::thread> others;
    for (int t = 1; t < std::min(threads, count); t++) others.emplace_back(loop);
    loop();
    for (auto& other : others) other.join();
}

// Aligned memory that is kept between calls of one thread: fresh pages cost more than the sums.
template <class T>
T* scratch(size_t count) {
    static thread_local std::unique_ptr<T[], void (*)(void*)> kept(nullptr, std::free);
    static thread_local size_t size = 0;
    if (count > size) {
        kept.reset(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)));
        size = count;
    }
    return kept.get();
}

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
    const int num_rows;  // of one accumulator of cells

    explicit Kernel(const Problem& problem)
        : p(problem), at(problem), cells(problem),
          num_rows(cells.start[problem.num_positions] * N) {}

    // Size of a tile's result: [key | value] by cell, [query | x] by cell, dense row, loss.
    size_t partial() const { return size_t(2 * num_rows) * FEATURES + (at.size + 1 + 15) / 16 * 16; }

    void tile(const T* w, const Tables& table, const double* a, const double* b, int count,
              T* out) const {
        auto group = std::make_unique<Groups>(p, at, cells, w, table);
        auto g = std::make_unique<typename Groups::Gradients>();
        g->clear(p.hidden, p.vocabulary);
        std::memset(out, 0, partial() * sizeof(T));
        g->kv = out;
        g->qx = out + size_t(num_rows) * FEATURES;
        T* dense = out + size_t(2 * num_rows) * FEATURES;
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
    void reduce(const T* w, Tables& table, const T* parts, int tiles, int batch, double* loss,
                T* grad) const {
        const size_t size = partial();
        std::vector<T> whole(parts, parts + size);
        double total = parts[size_t(2 * num_rows) * FEATURES + at.size];
        for (int tile = 1; tile < tiles; tile++) {
            const T* part = parts + tile * size;
            for (size_t i = 0; i < size; i++) whole[i] += part[i];
            total += part[size_t(2 * num_rows) * FEATURES + at.size];
        }
        T* dense = whole.data() + size_t(2 * num_rows) * FEATURES;
        table.backward(w, dense, whole.data(), whole.data() + size_t(num_rows) * FEATURES);
        const double examples = double(batch) * p.num_rows;
        for (int i = 0; i < at.size; i++) grad[i] = T(dense[i] / examples);
        *loss = total / examples;
    }

    void step(const T* dense, const double* a, const double* b, int seeds, int batch, int threads,
              double* loss, T* grad) const {
        const int tiles = (batch + TILE - 1) / TILE;
        // As many seeds together as keep every thread busy, and no more: buffers stay small.
        const int chunk = std::min(seeds, std::max(1, 2 * threads));
        T* parts = scratch<T>(partial() * tiles * chunk);
        std::vector<std::unique_ptr<Tables>> tables(chunk);
        for (auto& table : tables) table = std::make_unique<Tables>(p, at, cells);
        for (int s0 = 0; s0 < seeds; s0 += chunk) {
            const int now = std::min(chunk, seeds - s0);
            for (int s = 0; s < now; s++) tables[s]->forward(dense + size_t(s0 + s) * at.size);
            spread(now * tiles, threads, [&](int item) {
                const int s = item / tiles, t = item % tiles;
                const size_t from = size_t(s0 + s) * batch + size_t(t) * TILE;
                tile(dense + size_t(s0 + s) * at.size, *tables[s], a + from, b + from,
                     std::min(TILE, batch - t * TILE), parts + item * partial());
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
        spread(blocks, threads, [&](int item) {
            auto group = std::make_unique<Groups>(p, at, cells, dense, table);
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

// Calls `use` with the kernel compiled for the shape; false if there is none.
template <class T, class Use>
bool with_kernel(const Problem& p, const Use& use) {
    const int d = p.width, h = p.heads, w = p.head_width;
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
        return with_kernel<T>(*p, [&](const auto& kernel) {                                       \
            kernel.step(dense, a, b, seeds, batch, threads, loss, grad);                          \
        });                                                                                       \
    }                                                                                             \
    int assay_judge_##SUFFIX(const Problem* p, const T* dense, const double* a, const double* b,  \
                             int count, int threads, int32_t* wrong, double* loss) {              \
        return with_kernel<T>(*p, [&](const auto& kernel) {                                       \
            kernel.judge(dense, a, b, count, threads, wrong, loss);                               \
        });                                                                                       \
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

const char* assay_sources() { return SOURCES; }

// The vector units that this file was compiled for; empty if the machine lacks one of them.
const char* assay_vector_units() {
#if defined(__AVX512F__)
    const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    return here ? "avx512" : "";
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "avx2" : "";
#else
    return "baseline";
#endif
}
#endif
}
