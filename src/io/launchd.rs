//! Sockets that launchd opened for this process.
//!
//! <https://developer.apple.com/documentation/xpc/launch_activate_socket>

use std::ffi::CStr;
use std::io::{Error, Result};
use std::os::fd::{FromRawFd, OwnedFd};
use std::{ptr, slice};

use libc::{ENOENT, ESRCH, c_char, c_int, size_t};
use rustix::io::{FdFlags, fcntl_setfd};

unsafe extern "C" {
    /// Part of libSystem; neither libc nor rustix declares it.
    fn launch_activate_socket(name: *const c_char, list: *mut *mut c_int, count: *mut size_t) -> c_int;
}

/// The sockets that the job's property list has under `Sockets`, `name`. None where it has none of that name, or where
/// this process is no job of launchd. To be called once: launchd hands them over once.
///
/// # Errors
/// As launchd says.
pub fn sockets(name: &CStr) -> Result<Vec<OwnedFd>> {
    let (mut list, mut count) = (ptr::null_mut(), 0);
    // SAFETY: the name ends in NUL, and both places to write to outlive the call.
    match unsafe { launch_activate_socket(name.as_ptr(), &raw mut list, &raw mut count) } {
        0 if list.is_null() => return Ok(Vec::new()),
        0 => {}
        ENOENT | ESRCH => return Ok(Vec::new()),
        errno => return Err(Error::from_raw_os_error(errno)),
    }
    // SAFETY: the call said that it made a list of so many descriptors.
    let numbers = unsafe { slice::from_raw_parts(list, count) }.to_vec();
    // SAFETY: the list is the caller's to free, and is not used any more.
    unsafe { libc::free(list.cast()) };
    let own = |number| {
        // SAFETY: launchd opened it for this process and hands it over once, so nothing else closes it.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
        Ok(socket)
    };
    numbers.into_iter().map(own).collect()
}
