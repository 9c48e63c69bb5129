//! Signals that ask a process to end, heeded where it has something to keep first. Elsewhere than on Unix none are.

use std::sync::atomic::{AtomicI32, Ordering};

/// The signal that came, or 0.
static CAME: AtomicI32 = AtomicI32::new(0);

/// How long a process has from the signal to its end.
#[cfg(unix)]
const SECONDS: std::ffi::c_uint = 20;

/// From now on SIGINT (Ctrl-C) and SIGTERM do not end the process at once: [`end_asked_for`] says that one came. The second one ends it, and so do 20
/// seconds. `false`: they end it at once again.
pub fn heed_signals(heed: bool) {
    #[cfg(unix)]
    unix::set(heed);
    #[cfg(not(unix))]
    let _ = heed;
}

/// The signal that asked the process to end while signals were heeded.
pub fn end_asked_for() -> Option<i32> {
    match CAME.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

#[cfg(unix)]
mod unix {
    use super::{CAME, Ordering, SECONDS};

    extern "C" fn came(signal: libc::c_int) {
        CAME.store(signal, Ordering::Relaxed);
        // SAFETY: async-signal-safe by POSIX, plain integers in and out; SIGALRM ends a process that has no handler for it, as this one.
        #[allow(unsafe_code)] // one libc call without pointers
        unsafe {
            libc::alarm(SECONDS);
        }
    }

    #[allow(unsafe_code)] // two libc calls that nothing in the standard library stands for
    pub(super) fn set(heed: bool) {
        let came: extern "C" fn(libc::c_int) = came;
        // SAFETY: `action` is a plain C structure, for which all zeros is a valid value (no flags, an empty mask); it is filled in before `sigaction`
        // reads it, and not kept by it. The handler stores one atomic integer and calls `alarm`, both async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = if heed {
                came as libc::sighandler_t
            } else {
                libc::SIG_DFL
            };
            // The second signal of a kind finds no handler. Calls that it meets go on.
            action.sa_flags = libc::SA_RESETHAND | libc::SA_RESTART;
            for signal in [libc::SIGINT, libc::SIGTERM] {
                libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            }
        }
    }
}
