// Memory of one call, which the next one may find again.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

namespace sgdkern {

// Cache-line aligned memory of one call.
class Workspace {
 public:
  // What is kept, if it is large enough, else new memory; null when there is none.
  static std::unique_ptr<Workspace> make(int64_t bytes) {
    std::unique_ptr<Workspace> workspace(spare_.exchange(nullptr));
    if (workspace && workspace->bytes_ >= bytes) return workspace;
    workspace.reset();
    return fresh(bytes);
  }

  static std::unique_ptr<Workspace> fresh(int64_t bytes) {
    std::unique_ptr<Workspace> workspace(new Workspace(bytes));
    if (!workspace->memory_) workspace.reset();
    return workspace;
  }

  // A page fault every 4 KiB of fresh memory costs a tenth of the time on wide layers: keep what is not too large.
  static void keep(std::unique_ptr<Workspace> workspace) {
    if (workspace && workspace->bytes_ <= kSpareBytes) delete spare_.exchange(workspace.release());
  }

  ~Workspace() { ::operator delete(memory_, std::align_val_t{kAlignment}); }

  char* memory() const { return static_cast<char*>(memory_); }

  static constexpr int64_t kAlignment = 64;

 private:
  explicit Workspace(int64_t bytes)
      : bytes_(bytes), memory_(::operator new(bytes, std::align_val_t{kAlignment}, std::nothrow)) {}

  static constexpr int64_t kSpareBytes = 64 << 20;
  static inline std::atomic<Workspace*> spare_{nullptr};
  int64_t bytes_;
  void* memory_;
};

// Lays out arrays one behind the other; `bytes` is -1 once they cannot be counted in 64 bits.
class Layout {
 public:
  // The place of an array [rows, columns] of elements of `size` bytes.
  int64_t place(int64_t rows, int64_t columns, int64_t size) {
    const int64_t at = bytes_;
    int64_t count = 0;  // an expanded tensor can have more elements than memory has bytes
    if (at < 0 || __builtin_mul_overflow(rows, columns, &count) || __builtin_mul_overflow(count, size, &count) ||
        __builtin_add_overflow(count, at + Workspace::kAlignment, &count)) {
      return bytes_ = -1;
    }
    bytes_ = count / Workspace::kAlignment * Workspace::kAlignment;
    return at;
  }

  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

}  // namespace sgdkern
