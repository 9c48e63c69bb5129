//! Signals that ask the process to end, heeded where it has something to keep first. Elsewhere than on Unix none are.

use std::sync::atomic::{AtomicI32, Ordering};

/// The signal that came, or 0.
static CAME: AtomicI32 = AtomicI32::new(0);

/// How long the process has from the signal to its end.
#[cfg(unix)]
const SECONDS: std::ffi::c_uint = 20;

/// From now on SIGINT (Ctrl-C) and SIGTERM do not end the process at once: [`came`] says that one did. The second one ends it, and so do 20
/// seconds. `false`: they end it at once again. Signals that the process was begun without (as in the background of a script) stay ignored.
pub fn heed(heed: bool) {
    #[cfg(unix)]
    unix::set(heed);
    #[cfg(not(unix))]
    let _ = heed;
}

/// The signal that asked the process to end while signals were heeded.
pub fn came() -> Option<i32> {
    match CAME.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

#[cfg(unix)]
mod unix {
    use super::{CAME, Ordering, SECONDS};

    extern "C" fn handle(signal: libc::c_int) {
        CAME.store(signal, Ordering::Relaxed);
        // Whichever comes next finds no handler.
        set(false);
        // SAFETY: async-signal-safe by POSIX, plain integers in and out; SIGALRM ends a process that has no handler for it, as this one.
        #[allow(unsafe_code)] // one libc call without pointers
        unsafe {
            libc::alarm(SECONDS);
        }
    }

    #[allow(unsafe_code)] // libc calls that nothing in the standard library stands for
    pub(super) fn set(heed: bool) {
        let ours: extern "C" fn(libc::c_int) = handle;
        // SAFETY: `sigaction` is a plain C structure, for which all zeros is a valid value (no flags, an empty mask); the structures are read and
        // filled in during the calls and not kept. The handler stores one atomic integer and calls `sigaction` and `alarm`, which are
        // async-signal-safe by POSIX.
        unsafe {
            for signal in [libc::SIGINT, libc::SIGTERM] {
                let mut now: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, std::ptr::null(), &raw mut now);
                if now.sa_sigaction == libc::SIG_IGN {
                    continue;
                }
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = if heed {
                    ours as libc::sighandler_t
                } else {
                    libc::SIG_DFL
                };
                // Calls that it meets go on.
                action.sa_flags = libc::SA_RESTART;
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
    }
}
