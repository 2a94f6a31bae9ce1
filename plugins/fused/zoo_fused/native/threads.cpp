#include "threads.h"

#include <pthread.h>

#include <atomic>
#include <new>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

enum { MOST_WORKERS = 64, SPINS = 400 };

void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// A number that threads wait for the change of. Spinning is short: whoever waits longer sleeps in the kernel, since the core
// may be needed by the very thread that is waited for.
struct Signal {
    std::atomic<unsigned> value{0};
    std::atomic<int> sleeping{0};

    void wait_while(unsigned seen) {
        for (int spin = 0; spin < SPINS; ++spin) {
            if (value.load(std::memory_order_acquire) != seen) return;
            pause_briefly();
        }
        sleeping.fetch_add(1);
        while (value.load() == seen) {
#if defined(__linux__)
            syscall(SYS_futex, reinterpret_cast<unsigned*>(&value), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
            std::this_thread::yield();
#endif
        }
        sleeping.fetch_sub(1);
    }

    void change_to(unsigned next) {
        value.store(next);
        if (sleeping.load() == 0) return;  // both are sequentially consistent: who sleeps after this has seen the new value
#if defined(__linux__)
        syscall(SYS_futex, reinterpret_cast<unsigned*>(&value), FUTEX_WAKE_PRIVATE, MOST_WORKERS, nullptr, nullptr, 0);
#endif
    }
};

// The number of a call and how many workers it has, in one value: a worker that is not needed may look late, when the next call
// is being made ready, and must not take a piece of each.
enum { COUNT_BITS = 7 };

unsigned next_call(unsigned last, int count) { return ((last >> COUNT_BITS) + 1) << COUNT_BITS | unsigned(count); }

int workers_of(unsigned call) { return int(call & ((1u << COUNT_BITS) - 1)); }

}  // namespace

struct Team {
    std::atomic<int> arrived{0};
    Signal all_met, call;
    int made = 0;  // threads that exist beside the caller
    void (*job)(void*, const Worker&) = nullptr;
    void* context = nullptr;
};

void Worker::meet() const {
    if (count == 1) return;
    const unsigned seen = team->all_met.value.load(std::memory_order_acquire);
    if (team->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
        team->arrived.store(0, std::memory_order_relaxed);
        team->all_met.change_to(seen + 1);
    } else {
        team->all_met.wait_while(seen);
    }
}

namespace {

pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER;
Team* team = nullptr;

void work(Team* of, int index, unsigned seen) {
    for (;;) {
        of->call.wait_while(seen);
        seen = of->call.value.load(std::memory_order_acquire);
        if (index >= workers_of(seen)) continue;
        const Worker worker{index, workers_of(seen), of};
        of->job(of->context, worker);
        worker.meet();
    }
}

// A child of fork has none of its parent's threads: it begins anew, and what the parent's team held is left alone.
void forget_team() {
    team = nullptr;
    new (&busy) pthread_mutex_t(PTHREAD_MUTEX_INITIALIZER);
}

}  // namespace

void run_on_threads(int threads, void (*job)(void*, const Worker&), void* context) {
    if (threads > MOST_WORKERS) threads = MOST_WORKERS;
    if (threads <= 1 || pthread_mutex_trylock(&busy) != 0) {
        job(context, Worker{0, 1, nullptr});
        return;
    }
    if (team == nullptr) {
        static bool registered = false;
        if (!registered) pthread_atfork(nullptr, nullptr, forget_team);
        registered = true;
        team = new Team;
    }
    for (; team->made < threads - 1; ++team->made) {
        try {
            std::thread(work, team, team->made + 1, team->call.value.load()).detach();
        } catch (...) {  // no more threads to be had: those that there are do it
            break;
        }
    }
    const int count = team->made + 1 < threads ? team->made + 1 : threads;
    team->job = job;
    team->context = context;
    team->call.change_to(next_call(team->call.value.load(), count));
    const Worker worker{0, count, team};
    job(context, worker);
    worker.meet();
    pthread_mutex_unlock(&busy);
}
