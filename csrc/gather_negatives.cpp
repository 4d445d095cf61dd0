// The gather of rows across processes that share memory: schemas, module, CPU implementation.
//
// Every rank owns a buffer that its peers can read: symmetric memory on GPUs, a shared file on the
// CPU. A gather is: barrier, publish_rows (into this rank's buffer), barrier, pull_rows (from every
// buffer). Its adjoint is the same with the gradient of the gathered rows and sum_rows. The first
// barrier makes sure that every rank has finished reading what the buffers held before.
#include "tensor_checks.h"

#include <Python.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

namespace crossalign {

constexpr int64_t kGrain = 32768;  // elements per thread below which a second thread costs more

template <typename Run>
void parallel_rows(int64_t rows, int64_t columns, const Run& run) {
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns)),
                              run);
}

// published[i] = rows[i], or rows[i] / max(||rows[i]||, 1e-12), in the type of published.
void publish_rows_cpu(const Tensor& rows, bool normalize, const Tensor& published,
                      const Tensor& failed) {
  check_publish(rows, published, failed);
  const int64_t columns = rows.size(1);
  with_cast_types(rows.scalar_type(), published.scalar_type(), [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    using Acc = typename Accumulator<In>::type;
    const In* source = static_cast<const In*>(rows.const_data_ptr());
    Out* target = static_cast<Out*>(published.mutable_data_ptr());
    parallel_rows(rows.size(0), columns, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const In* row = source + i * columns;
        double square = 0;
        for (int64_t j = 0; normalize && j < columns; ++j) {
          square += static_cast<double>(row[j]) * static_cast<double>(row[j]);
        }
        const double norm = normalize ? std::max(std::sqrt(square), 1e-12) : 1;
        const Acc scale = static_cast<Acc>(1 / norm);
        for (int64_t j = 0; j < columns; ++j) {
          target[i * columns + j] = static_cast<Out>(static_cast<Acc>(row[j]) * scale);
        }
      }
    });
  });
}

// gathered = the rows at peers[0], peers[1], ..., one after the other.
void pull_rows_cpu(const std::vector<int64_t>& peers, const std::vector<int64_t>& peer_rows,
                   const Tensor& gathered, const Tensor& failed) {
  check_pull(peers, peer_rows, gathered, failed);
  const int64_t row_bytes = gathered.size(1) * static_cast<int64_t>(gathered.element_size());
  char* target = static_cast<char*>(gathered.mutable_data_ptr());
  for (size_t peer = 0; peer < peers.size(); ++peer) {
    const char* source = reinterpret_cast<const char*>(peers[peer]);
    parallel_rows(peer_rows[peer], row_bytes, [&](int64_t begin, int64_t end) {
      std::memcpy(target + begin * row_bytes, source + begin * row_bytes, (end - begin) * row_bytes);
    });
    target += peer_rows[peer] * row_bytes;
  }
}

// total[i] = sum over the peers, in their order, of row first_row + i of each.
void sum_rows_cpu(const std::vector<int64_t>& peers, int64_t first_row, ScalarType peer_dtype,
                  const Tensor& total, const Tensor& failed) {
  check_sum(peers, first_row, total, failed);
  const int64_t columns = total.size(1);
  with_sum_types(peer_dtype, total.scalar_type(), [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    using Acc = typename Accumulator<In>::type;
    constexpr int64_t kChunk = 256;  // sums kept in the first-level cache
    Out* target = static_cast<Out*>(total.mutable_data_ptr());
    parallel_rows(total.size(0), columns, [&](int64_t begin, int64_t end) {
      Acc sums[kChunk];
      for (int64_t start = begin * columns; start < end * columns; start += kChunk) {
        const int64_t count = std::min(kChunk, end * columns - start);
        std::fill_n(sums, count, Acc(-0.0));  // the neutral element: -0 + x is x, also for x = -0
        for (const int64_t address : peers) {
          const In* source = reinterpret_cast<const In*>(address) + first_row * columns + start;
          for (int64_t j = 0; j < count; ++j) {
            sums[j] += static_cast<Acc>(source[j]);
          }
        }
        for (int64_t j = 0; j < count; ++j) {
          target[start + j] = static_cast<Out>(sums[j]);
        }
      }
    });
  });
}

// Posts `number` and `exchange` to every rank, then waits until every rank has posted that number or
// a later one. flags[r] is rank r's array, one int64 per rank. On time-out, status = 1 + the rank that
// is missing; if a rank came with another exchange, status = -1 - that rank. On a GPU the same goes to
// `failed`, its own memory, where its later kernels look.
void barrier_cpu(const Tensor& buffer, const std::vector<int64_t>& flags, int64_t rank,
                 int64_t number, int64_t exchange, double timeout_s, const Tensor& failed,
                 const Tensor& status) {
  check_barrier(buffer, flags, rank, number, exchange, timeout_s, failed, status);
  auto* outcome = static_cast<int32_t*>(status.mutable_data_ptr());
  for (const int64_t address : flags) {
    __atomic_store_n(reinterpret_cast<int64_t*>(address) + rank,
                     flag_of(number, exchange), __ATOMIC_RELEASE);
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
  const int64_t* arrived = reinterpret_cast<const int64_t*>(flags[rank]);
  for (size_t peer = 0; peer < flags.size(); ++peer) {
    int64_t flag = __atomic_load_n(arrived + peer, __ATOMIC_ACQUIRE);
    for (int spins = 0; number_of(flag) < number; ++spins) {
      if (spins < 1000) {
        std::this_thread::yield();
      } else if (std::chrono::steady_clock::now() > deadline) {
        *outcome = static_cast<int32_t>(peer) + 1;
        return;
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
      flag = __atomic_load_n(arrived + peer, __ATOMIC_ACQUIRE);
    }
    if (is_another_exchange(flag, number, exchange)) {
      *outcome = -1 - static_cast<int32_t>(peer);
      return;
    }
  }
}

}  // namespace crossalign

// Addresses are integers, since a peer's memory has no tensor here. `buffer` is this rank's own; it
// tells barrier where to run.
STABLE_TORCH_LIBRARY(crossalign_ext, m) {
  m.def("publish_rows(Tensor rows, bool normalize, Tensor(a!) published, Tensor failed) -> ()");
  m.def("pull_rows(int[] peers, int[] peer_rows, Tensor(a!) gathered, Tensor failed) -> ()");
  m.def(
      "sum_rows(int[] peers, int first_row, ScalarType peer_dtype, Tensor(a!) total, "
      "Tensor failed) -> ()");
  m.def(
      "barrier(Tensor(a!) buffer, int[] flags, int rank, int number, int exchange, float timeout_s, "
      "Tensor(b!) failed, Tensor(c!) status) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(crossalign_ext, CPU, m) {
  m.impl("publish_rows", TORCH_BOX(&crossalign::publish_rows_cpu));
  m.impl("pull_rows", TORCH_BOX(&crossalign::pull_rows_cpu));
  m.impl("sum_rows", TORCH_BOX(&crossalign::sum_rows_cpu));
  m.impl("barrier", TORCH_BOX(&crossalign::barrier_cpu));
}

// Importing the module runs the registrations above. It holds what it was built with, no bindings.
PyMODINIT_FUNC PyInit__gather_negatives() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_gather_negatives", nullptr, -1, nullptr,
                                   nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module != nullptr) {
    PyModule_AddStringConstant(module, "cuda_archs", CROSSALIGN_CUDA_ARCHS);
    PyModule_AddStringConstant(module, "built_with_torch", CROSSALIGN_BUILT_WITH);
  }
  return module;
}
