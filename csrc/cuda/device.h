// What the kernels ask of the machine, behind names of the project's own: tests/host_run.h gives the same names to
// a C++ compiler, and runs the threads of a block on the CPU. No header of CUDA is needed, so that NVRTC compiles it
// alone.
#pragma once

#define FK_DEVICE
#ifndef FK_ISA
#define FK_ISA cuda
#endif

#ifdef FK_HOST_RUN
#include "host_run.h"
#else

#define FK_INLINE __device__ __forceinline__
#define FK_KERNEL(THREADS) extern "C" __global__ void __launch_bounds__(THREADS, 1)
#define FK_ARGUMENTS(TYPE) const __grid_constant__ TYPE arguments
#define FK_UNROLL _Pragma("unroll")

namespace flowkern::FK_ISA {

FK_INLINE int thread() { return threadIdx.x; }
FK_INLINE int block() { return blockIdx.x; }
FK_INLINE int blocks() { return gridDim.x; }
FK_INLINE void sync() { __syncthreads(); }
FK_INLINE void sync_warp() { __syncwarp(); }

template <class T>
FK_INLINE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}

FK_INLINE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

// Has a value computed that nobody reads.
FK_INLINE void keep_alive(int value) { asm volatile("" ::"r"(value)); }

// -- asynchronous copies: 16 bytes of global to shared memory; a wait leaves the newest N groups under way
FK_INLINE void copy_async(void* shared, const void* global) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
FK_INLINE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
FK_INLINE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// -- groups of blocks that share one tile of rows: a cluster, or blocks of a cooperative launch that meet at a counter
#if __CUDA_ARCH__ >= 900
// The same place in the shared memory of another block of the cluster.
template <class T>
FK_INLINE T* remote(T* shared, int rank) {
  unsigned long long to;
  asm("mapa.u64 %0, %1, %2;" : "=l"(to) : "l"(shared), "r"(rank));
  return reinterpret_cast<T*>(to);
}
FK_INLINE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
constexpr bool kCounters = false;  // groups of blocks are clusters there
#else
template <class T>
FK_INLINE T* remote(T* shared, int) {
  return shared;
}
FK_INLINE void sync_cluster() {}
constexpr bool kCounters = true;
#endif

// Waits until `count` blocks have come here `round` times, counted from 1.
FK_INLINE void sync_blocks(unsigned* counter, int count, unsigned round) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1u);
    unsigned seen;
    do asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    while (seen < count * round);
    __threadfence();
  }
  __syncthreads();
}
// Reads what another block wrote: not through this multiprocessor's first-level cache.
FK_INLINE float load_shared_by_blocks(const float* p) { return __ldcg(p); }
FK_INLINE double load_shared_by_blocks(const double* p) { return __ldcg(p); }

// -- words between blocks that run at the same time: each carries a tag, so that whoever waits for it needs no barrier
FK_INLINE void send_word(unsigned long long* to, unsigned value, unsigned tag) {
  const unsigned long long word = static_cast<unsigned long long>(tag) << 32 | value;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}
// Waits for the word of a tag.
FK_INLINE unsigned receive_word(const unsigned long long* from, unsigned tag) {
  unsigned long long word;
  do asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  while (word >> 32 != tag);
  return static_cast<unsigned>(word);
}

// -- numbers
FK_INLINE float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
FK_INLINE unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
FK_INLINE float bits_to_float(unsigned bits) { return __uint_as_float(bits); }
FK_INLINE unsigned float_to_bits(float value) { return __float_as_uint(value); }
FK_INLINE double bits_to_double(unsigned high, unsigned low) { return __hiloint2double(high, low); }
FK_INLINE unsigned high_bits(double value) { return __double2hiint(value); }
FK_INLINE unsigned low_bits(double value) { return __double2loint(value); }

// -- matrix instructions: c [16, 8] += a [16, 8] b [8, 8] over the lanes of a warp, the factors rounded to tf32. With g
// = lane / 4 and t = lane % 4, a holds (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4), b (t, g), (t + 4, g) and c (g, 2
// t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
FK_INLINE unsigned to_tf32(float value) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}
FK_INLINE void multiply_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace flowkern::FK_ISA

#endif
