// What the CUDA launches share: stream and device, the peers' addresses, vector accesses.
#pragma once

#include "tensor_checks.h"

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

// Only in libtorch_cuda. Weak, so that the extension also loads beside a PyTorch without CUDA.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace crossalign {

#define CUDA_CHECK(call)                                                                  \
  do {                                                                                    \
    const cudaError_t error = (call);                                                     \
    STD_TORCH_CHECK(error == cudaSuccess, #call, " failed: ", cudaGetErrorString(error)); \
  } while (0)

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int kLoads = 4;        // independent loads in flight per thread of a copy
constexpr int kPeersAtOnce = 8;  // and of a sum: the GPUs of a usual machine, all links at once

struct Peers {
  const char* base[kMaxRanks];
  int64_t first_row[kMaxRanks + 1];  // pull: where each peer's rows begin in the result
  int count;
};

struct Flags {
  int64_t* of_rank[kMaxRanks];
  int count;
};

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T values[kWidth];
};

// The tensor's device made current, its stream, and how many blocks fill it.
struct Launch {
  explicit Launch(const Tensor& tensor) : guard(tensor.get_device_index()) {
    const int32_t device = tensor.get_device_index();
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                    "this PyTorch has no CUDA, but the tensor is on a GPU");
    void* handle = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &handle) == TORCH_SUCCESS,
                    "PyTorch has no current stream for device ", device);
    stream = static_cast<cudaStream_t>(handle);
    CUDA_CHECK(cudaSetDevice(device));  // the guard speaks to PyTorch's runtime, this to ours
    CUDA_CHECK(
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  }

  // Blocks for one of `shares` equal parts of the device.
  unsigned blocks(int64_t items, int64_t items_per_block, int shares) const {
    const int64_t wanted = (items + items_per_block - 1) / items_per_block;
    const int64_t most = std::max(1, kBlocksPerMultiprocessor * multiprocessors / shares);
    return static_cast<unsigned>(std::clamp<int64_t>(wanted, 1, most));
  }

  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream = nullptr;
  int multiprocessors = 0;
};

// The status word as the GPU sees it: pinned host memory, so the host reads it without waiting.
inline int* status_on_device(const Tensor& status) {
  void* pointer = nullptr;
  CUDA_CHECK(cudaHostGetDevicePointer(&pointer, status.mutable_data_ptr(), 0));
  return static_cast<int*>(pointer);
}

inline Peers peers_of(const std::vector<int64_t>& addresses) {
  Peers peers{};
  peers.count = static_cast<int>(addresses.size());
  for (int r = 0; r < peers.count; ++r) {
    peers.base[r] = reinterpret_cast<const char*>(addresses[r]);
  }
  return peers;
}

// The largest power of two up to 16 that divides a row's bytes and every address.
inline int64_t access_bytes(int64_t row_bytes, const std::vector<int64_t>& addresses,
                            const void* other) {
  int64_t bits = 16 | row_bytes | reinterpret_cast<int64_t>(other);
  for (const int64_t address : addresses) {
    bits |= address;
  }
  return bits & -bits;
}

// True for the whole block if a barrier failed: what the peers hold is then unknown. The flag lies in
// the GPU's own memory; over the bus every block would wait a microsecond or two for the host's.
__device__ inline bool barrier_failed(const int* flag) {
  const int failed = threadIdx.x == 0 ? *static_cast<const volatile int*>(flag) : 0;
  return __syncthreads_or(failed) != 0;
}

}  // namespace crossalign
