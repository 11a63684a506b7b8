//! The planted mistake: `fdatasync` that does nothing and says it succeeded.
//!
//! It is left out from outside, by a filter of system calls that the Server starts with: the binary is the one that
//! is shipped, and no switch in it could ever be thrown by accident.

use std::io;

/// What the filter finds in the call it is asked about: its number comes first.
const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// From now on `fdatasync` of this process and its children returns 0 and does nothing. Async-signal-safe.
pub(super) fn leave_out_fdatasync() -> io::Result<()> {
    let number = u32::try_from(libc::SYS_fdatasync).expect("numbers of system calls are small");
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let mut steps = [
        step(LOAD_NUMBER, 0, 0),
        step(JUMP_IF_EQUAL, 1, number),
        // Errno 0: the caller hears of success.
        step(RETURN, 0, libc::SECCOMP_RET_ERRNO),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which lives until both calls are over.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
