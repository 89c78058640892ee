// What every kernel library has: threads, and who it is.
#pragma once
#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "vector.h"

// Does work(item, worker) for every item; workers that do not come to be are missed by nobody.
template <class Work>
void spread(int count, int threads, const Work& work) {
    std::atomic<int> next{0};
    auto loop = [&](int worker) {
        for (int i; (i = next.fetch_add(1)) < count;) work(i, worker);
    };
    std::vector<std::thread> others;
    for (int t = 1; t < std::min(threads, count); t++) others.emplace_back(loop, t);
    loop(0);
    for (auto& other : others) other.join();
}
