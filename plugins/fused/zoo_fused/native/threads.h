// Workers that share one call. They are made at first use, spin for some microseconds between calls and then sleep.
#pragma once

struct Team;

struct Worker {
    int index, count;
    Team* team;
    // Returns when every worker of the call has come here.
    void meet() const;
};

// Runs job(context, worker) on so many threads, of which the caller is one. Fewer, when another call has the workers: what a
// job computes must not depend on how many there are.
void run_on_threads(int threads, void (*job)(void*, const Worker&), void* context);
