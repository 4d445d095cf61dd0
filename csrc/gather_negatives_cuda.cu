// CUDA implementation of the gather operators; gather_negatives.cpp says what they do together.
//
// Peers' memory is mapped into this process, so a pull is an ordinary load over the link. Only barrier
// waits for another GPU, and it is a single block: whatever else runs on this GPU, such as a
// collective that a peer waits for, still finds room. Kernel boundaries order it with the copies.
//
// Bytes per rank, W ranks: pull reads the gathered matrix, (W - 1) / W of it over the link; sum
// reads W times the own rows, likewise. Both move 16 bytes per access where the row size allows it.
#include "cuda_launch.h"

namespace crossalign {

// published[i] = rows[i] / (normalize ? max(||rows[i]||, 1e-12) : 1); one warp per row.
template <typename In, typename Out, int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    publish_rows_kernel(const In* __restrict__ rows, Out* __restrict__ published, int64_t num_rows,
                        int64_t columns, bool normalize, const int* failed) {
  if (barrier_failed(failed)) {
    return;  // a peer may still be reading what is here
  }
  using Acc = typename Accumulator<In>::type;
  const int lane = threadIdx.x % kWarp;
  const int64_t vectors = columns / kWidth;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
       i < num_rows; i += warps) {
    const auto* source = reinterpret_cast<const Vector<In, kWidth>*>(rows + i * columns);
    auto* target = reinterpret_cast<Vector<Out, kWidth>*>(published + i * columns);
    Acc scale = 1;
    if (normalize) {
      Acc square = 0;
      for (int64_t j = lane; j < vectors; j += kWarp) {
        const Vector<In, kWidth> in = source[j];
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          const Acc value = static_cast<Acc>(in.values[k]);
          square += value * value;
        }
      }
      for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        square += __shfl_xor_sync(0xffffffffu, square, offset);
      }
      scale = 1 / max(sqrt(square), Acc(1e-12));
    }
    for (int64_t j = lane; j < vectors; j += kWarp) {
      const Vector<In, kWidth> in = source[j];
      Vector<Out, kWidth> out;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        out.values[k] = static_cast<Out>(static_cast<Acc>(in.values[k]) * scale);
      }
      target[j] = out;
    }
  }
}

void publish_rows_cuda(const Tensor& rows, bool normalize, const Tensor& published,
                       const Tensor& failed) {
  check_publish(rows, published, failed);
  if (rows.numel() == 0) {
    return;
  }
  const Launch launch(rows);
  const int64_t num_rows = rows.size(0);
  const int64_t columns = rows.size(1);
  const int* flag = static_cast<const int*>(failed.const_data_ptr());
  with_cast_types(rows.scalar_type(), published.scalar_type(), [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    constexpr int kWidth = 16 / std::max(sizeof(In), sizeof(Out));
    const auto* source = static_cast<const In*>(rows.const_data_ptr());
    auto* target = static_cast<Out*>(published.mutable_data_ptr());
    const unsigned blocks = launch.blocks(num_rows, kThreads / kWarp, 1);
    const int64_t bits = reinterpret_cast<int64_t>(source) | reinterpret_cast<int64_t>(target);
    const auto run = [&](auto width) {
      publish_rows_kernel<In, Out, decltype(width)::value><<<blocks, kThreads, 0, launch.stream>>>(
          source, target, num_rows, columns, normalize, flag);
    };
    if (columns % kWidth == 0 && bits % 16 == 0) {
      run(std::integral_constant<int, kWidth>());
    } else {
      run(std::integral_constant<int, 1>());
    }
    CUDA_CHECK(cudaGetLastError());
  });
}

// gathered[first_row[p] + i] = row i of peer p = blockIdx.y. All blocks are resident at once, so every
// link carries its share from the start.
template <typename Word>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    pull_rows_kernel(const Peers peers, Word* __restrict__ gathered, int64_t row_words,
                     const int* flag) {
  const bool failed = barrier_failed(flag);
  const int peer = blockIdx.y;
  const Word* source = reinterpret_cast<const Word*>(peers.base[peer]);
  Word* target = gathered + peers.first_row[peer] * row_words;
  const int64_t words = (peers.first_row[peer + 1] - peers.first_row[peer]) * row_words;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  Word nan;
  memset(&nan, 0xff, sizeof(Word));  // all bits set is NaN in every floating-point type
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < words;
       i += kLoads * stride) {
    Word held[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int64_t word = i + k * stride;
      held[k] = !failed && word < words ? source[word] : nan;
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int64_t word = i + k * stride;
      if (word < words) {
        target[word] = held[k];
      }
    }
  }
}

void pull_rows_cuda(const std::vector<int64_t>& addresses, const std::vector<int64_t>& peer_rows,
                    const Tensor& gathered, const Tensor& failed) {
  check_pull(addresses, peer_rows, gathered, failed);
  if (gathered.numel() == 0) {
    return;
  }
  const Launch launch(gathered);
  Peers peers = peers_of(addresses);
  for (int r = 0; r < peers.count; ++r) {
    peers.first_row[r + 1] = peers.first_row[r] + peer_rows[r];
  }
  const int64_t row_bytes = gathered.size(1) * static_cast<int64_t>(gathered.element_size());
  void* target = gathered.mutable_data_ptr();
  const int* flag = static_cast<const int*>(failed.const_data_ptr());
  const auto run = [&](auto word) {
    using Word = decltype(word);
    const int64_t row_words = row_bytes / static_cast<int64_t>(sizeof(Word));
    const int64_t most_words = *std::max_element(peer_rows.begin(), peer_rows.end()) * row_words;
    const dim3 grid(launch.blocks(most_words, kThreads * kLoads, peers.count), peers.count);
    pull_rows_kernel<Word><<<grid, kThreads, 0, launch.stream>>>(
        peers, static_cast<Word*>(target), row_words, flag);
    CUDA_CHECK(cudaGetLastError());
  };
  switch (access_bytes(row_bytes, addresses, target)) {
    case 16: return run(uint4());
    case 8: return run(uint2());
    case 4: return run(uint32_t());
    case 2: return run(uint16_t());
    default: return run(uint8_t());
  }
}

// total[i] = sum over peers, in rank order, of element first + i of each. The partial sum starts at
// -0, the neutral element, so that the bits are those of adding the first two numbers.
template <typename In, typename Out, int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    sum_rows_kernel(const Peers peers, Out* __restrict__ total, int64_t first, int64_t vectors,
                    const int* flag) {
  using Acc = typename Accumulator<In>::type;
  const bool failed = barrier_failed(flag);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < vectors;
       i += stride) {
    Acc sums[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      sums[k] = failed ? Acc(NAN) : Acc(-0.0);
    }
    for (int peer = 0; !failed && peer < peers.count; peer += kPeersAtOnce) {
      Vector<In, kWidth> held[kPeersAtOnce];
#pragma unroll
      for (int u = 0; u < kPeersAtOnce; ++u) {
        if (peer + u < peers.count) {
          const In* source = reinterpret_cast<const In*>(peers.base[peer + u]) + first;
          held[u] = reinterpret_cast<const Vector<In, kWidth>*>(source)[i];
        }
      }
#pragma unroll
      for (int u = 0; u < kPeersAtOnce; ++u) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          if (peer + u < peers.count) {
            sums[k] += static_cast<Acc>(held[u].values[k]);
          }
        }
      }
    }
    Vector<Out, kWidth> out;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      out.values[k] = static_cast<Out>(sums[k]);
    }
    reinterpret_cast<Vector<Out, kWidth>*>(total)[i] = out;
  }
}

void sum_rows_cuda(const std::vector<int64_t>& addresses, int64_t first_row, ScalarType peer_dtype,
                   const Tensor& total, const Tensor& failed) {
  check_sum(addresses, first_row, total, failed);
  if (total.numel() == 0) {
    return;
  }
  const Launch launch(total);
  const Peers peers = peers_of(addresses);
  const int64_t columns = total.size(1);
  const int* flag = static_cast<const int*>(failed.const_data_ptr());
  with_sum_types(peer_dtype, total.scalar_type(), [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    constexpr int kWidth = 16 / sizeof(In);
    auto* target = static_cast<Out*>(total.mutable_data_ptr());
    const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(In));
    const auto run = [&](auto width) {
      constexpr int kChosen = decltype(width)::value;
      const int64_t vectors = total.numel() / kChosen;
      sum_rows_kernel<In, Out, kChosen>
          <<<launch.blocks(vectors, kThreads, 1), kThreads, 0, launch.stream>>>(
              peers, target, first_row * columns, vectors, flag);
    };
    if (access_bytes(row_bytes, addresses, nullptr) == 16 &&
        reinterpret_cast<int64_t>(target) % (sizeof(Out) * kWidth) == 0) {
      run(std::integral_constant<int, kWidth>());
    } else {
      run(std::integral_constant<int, 1>());
    }
    CUDA_CHECK(cudaGetLastError());
  });
}

__device__ void report(int outcome, int* failed, int* status) {
  *static_cast<volatile int*>(failed) = outcome;
  *static_cast<volatile int*>(status) = outcome;
  __threadfence_system();
}

// Thread r tells rank r that this rank has arrived, then waits for rank r's flag. A failed barrier is
// final: later ones return at once, and tell nobody that this rank has come.
__global__ void barrier_kernel(const Flags flags, int rank, int64_t number, int64_t exchange,
                               uint64_t timeout_ns, int* failed, int* status) {
  const int peer = threadIdx.x;
  if (peer >= flags.count || *static_cast<volatile int*>(failed) != 0) {
    return;
  }
  __threadfence_system();
  store_release(flags.of_rank[peer] + rank, flag_of(number, exchange));
  const uint64_t start = nanoseconds();
  int64_t flag = load_acquire(flags.of_rank[rank] + peer);
  while (number_of(flag) < number) {
    if (nanoseconds() - start > timeout_ns) {
      report(peer + 1, failed, status);
      return;
    }
    __nanosleep(100);
    flag = load_acquire(flags.of_rank[rank] + peer);
  }
  if (is_another_exchange(flag, number, exchange)) {
    report(-1 - peer, failed, status);
  }
}

void barrier_cuda(const Tensor& buffer, const std::vector<int64_t>& addresses, int64_t rank,
                  int64_t number, int64_t exchange, double timeout_s, const Tensor& failed,
                  const Tensor& status) {
  check_barrier(buffer, addresses, rank, number, exchange, timeout_s, failed, status);
  const Launch launch(buffer);
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  CUDA_CHECK(cudaStreamIsCapturing(launch.stream, &capture));
  STD_TORCH_CHECK(capture == cudaStreamCaptureStatusNone,
                  "must not be captured in a CUDA graph: a replay would wait for a barrier of an old "
                  "number; call it outside of the capture");
  Flags flags{};
  flags.count = static_cast<int>(addresses.size());
  for (int r = 0; r < flags.count; ++r) {
    flags.of_rank[r] = reinterpret_cast<int64_t*>(addresses[r]);
  }
  const int threads = (flags.count + kWarp - 1) / kWarp * kWarp;
  barrier_kernel<<<1, threads, 0, launch.stream>>>(flags, static_cast<int>(rank), number, exchange,
                                                   static_cast<uint64_t>(timeout_s * 1e9),
                                                   static_cast<int*>(failed.mutable_data_ptr()),
                                                   status_on_device(status));
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace crossalign

STABLE_TORCH_LIBRARY_IMPL(crossalign_ext, CUDA, m) {
  m.impl("publish_rows", TORCH_BOX(&crossalign::publish_rows_cuda));
  m.impl("pull_rows", TORCH_BOX(&crossalign::pull_rows_cuda));
  m.impl("sum_rows", TORCH_BOX(&crossalign::sum_rows_cuda));
  m.impl("barrier", TORCH_BOX(&crossalign::barrier_cuda));
}
