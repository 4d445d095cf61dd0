// What ranks post at a barrier, on the CPU and on GPUs: one int64 a rank, in every rank's memory.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CROSSALIGN_BOTH_SIDES __host__ __device__
#else
#define CROSSALIGN_BOTH_SIDES
#endif

namespace crossalign {

// A flag holds the number of a barrier, which grows, above the exchange that the barrier belongs to.
// The number is compared first, so exchanges may repeat after 2^23 of them.
constexpr int kExchangeBits = 23;
constexpr int64_t kExchanges = int64_t{1} << kExchangeBits;
constexpr int64_t kBarriers = int64_t{1} << (62 - kExchangeBits);

CROSSALIGN_BOTH_SIDES inline int64_t flag_of(int64_t number, int64_t exchange) {
  return number << kExchangeBits | exchange;
}

CROSSALIGN_BOTH_SIDES inline int64_t number_of(int64_t flag) { return flag >> kExchangeBits; }

// A rank that is already at the next barrier has passed this one; that one will tell its exchange.
CROSSALIGN_BOTH_SIDES inline bool is_another_exchange(int64_t flag, int64_t number,
                                                      int64_t exchange) {
  return number_of(flag) == number && flag != flag_of(number, exchange);
}

#ifdef __CUDACC__
__device__ inline void store_release(int64_t* address, int64_t value) {
  asm volatile("st.release.sys.global.s64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

__device__ inline int64_t load_acquire(const int64_t* address) {
  int64_t value;
  asm volatile("ld.acquire.sys.global.s64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
}

__device__ inline uint64_t nanoseconds() {
  uint64_t value;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(value));
  return value;
}
#endif

}  // namespace crossalign
