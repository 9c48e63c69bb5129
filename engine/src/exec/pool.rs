//! The engine's own threads, behind the window's in priority.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

static THREADS: AtomicUsize = AtomicUsize::new(0);
static BEHIND_WINDOW: AtomicBool = AtomicBool::new(false);
static POOL: OnceLock<rayon::ThreadPool> = OnceLock::new();

/// The engine's own rayon pool (nice 10 on Unix where a window goes first, see [`stay_behind_window`]). Results of every kernel are
/// bit-identical whatever its number of threads.
pub fn pool() -> &'static rayon::ThreadPool {
    POOL.get_or_init(|| {
        let build = |threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                // Gradients of a deep network are sought by recursion.
                .stack_size(16 << 20)
                .thread_name(|i| format!("limbeck-{i}"))
                .start_handler(|_| {
                    if BEHIND_WINDOW.load(Ordering::Relaxed) {
                        lower_priority();
                    }
                })
                .build()
        };
        // A system that refuses several threads still gives one that runs on the caller's behalf.
        build(THREADS.load(Ordering::Relaxed))
            .or_else(|_| build(1))
            .or_else(|_| {
                rayon::ThreadPoolBuilder::new()
                    .num_threads(1)
                    .use_current_thread()
                    .build()
            })
            .expect("a pool on the current thread starts no thread that could be refused")
    })
}

/// Runs `work` on the engine's pool, or where we already are when that is a rayon pool.
pub fn on_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() {
        work()
    } else {
        pool().install(work)
    }
}

/// Sets the number of threads; only before the first use of [`pool`]. 0: all cores.
pub fn set_threads(threads: usize) {
    THREADS.store(threads, Ordering::Relaxed);
}

/// Lets a window go first: the pool's threads take a lower priority. Only before the first use of [`pool`]; a command line
/// works at its own priority.
pub fn stay_behind_window() {
    BEHIND_WINDOW.store(true, Ordering::Relaxed);
}

#[cfg(unix)]
#[allow(unsafe_code)] // one libc call without pointers, needed before the kernels' own threads start
fn lower_priority() {
    // SAFETY: plain integers in and out; on Linux `who` 0 with PRIO_PROCESS names the calling thread, and raising
    // one's own niceness needs no privilege. Failure only leaves the priority as it was.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 10);
    }
}

#[cfg(not(unix))]
fn lower_priority() {}
