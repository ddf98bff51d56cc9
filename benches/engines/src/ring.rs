//! io_uring, directly, with what it has for servers: one request each for all accepts and for all reads of a
//! connection, buffers lent to the kernel through a ring, completions worked off only when they are waited for.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::contenders::{ANY_PORT, announce, is_request};

/// Buffers lent to the kernel, a power of two: more than there are connections.
const BUFFERS: u16 = 256;
const BUFFER: usize = 4096;
const GROUP: u16 = 0;

/// What a completion is of: the upper half of its user data; the socket is the lower.
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1 << 32;
const SEND: u64 = 2 << 32;
const CLOSE: u64 = 3 << 32;

/// Serves with one ring.
///
/// # Errors
/// Where the system has no io_uring, or none that is new enough (Linux 6.1).
pub fn serve(answer: &'static [u8]) -> io::Result<()> {
    let listener = TcpListener::bind(ANY_PORT)?;
    let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(1024)?;
    let buffers = Buffers::lend(&ring)?;
    let mut server = Server { ring, buffers, answer };
    server.push(accept(listener.as_raw_fd()))?;
    announce(listener.local_addr()?)?;
    let mut completions = Vec::new();
    loop {
        server.ring.submit_and_wait(1)?;
        completions.extend(server.ring.completion());
        for completion in completions.drain(..) {
            server.take(&completion, listener.as_raw_fd())?;
        }
    }
}

struct Server {
    ring: IoUring,
    buffers: Buffers,
    answer: &'static [u8],
}

impl Server {
    fn take(&mut self, completion: &cqueue::Entry, listener: RawFd) -> io::Result<()> {
        let socket = completion.user_data() as u32 as RawFd;
        let goes_on = cqueue::more(completion.flags());
        match completion.user_data() & !u64::from(u32::MAX) {
            ACCEPT => {
                if completion.result() >= 0 {
                    self.push(receive(completion.result()))?;
                }
                if goes_on { Ok(()) } else { self.push(accept(listener)) }
            }
            RECEIVE => {
                let asked = cqueue::buffer_select(completion.flags()).is_some_and(|buffer| {
                    let count = usize::try_from(completion.result()).unwrap_or(0);
                    let asked = is_request(self.buffers.get(buffer, count));
                    self.buffers.give_back(buffer);
                    asked
                });
                if asked {
                    self.push(send(socket, self.answer))?;
                }
                match completion.result() {
                    _ if goes_on => Ok(()),
                    // No buffer was free, or the kernel wants to be asked anew.
                    1.. => self.push(receive(socket)),
                    result if -result == rustix::io::Errno::NOBUFS.raw_os_error() => {
                        self.push(receive(socket))
                    }
                    _ => self.push(close(socket)),
                }
            }
            // A short answer would have the client wait for ever; it never is, as nothing else is on its way.
            SEND if completion.result() != self.answer.len() as i32 => {
                Err(io::Error::other("an answer was not sent whole"))
            }
            _ => Ok(()),
        }
    }

    fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: what the entries point to (the answer) lives as long as the process; sockets are closed
            // only by the last entry that names them.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }
}

fn accept(listener: RawFd) -> squeue::Entry {
    opcode::AcceptMulti::new(Fd(listener)).build().user_data(ACCEPT)
}

fn receive(socket: RawFd) -> squeue::Entry {
    opcode::RecvMulti::new(Fd(socket), GROUP).build().user_data(RECEIVE | socket as u64)
}

fn send(socket: RawFd, answer: &'static [u8]) -> squeue::Entry {
    opcode::Send::new(Fd(socket), answer.as_ptr(), answer.len() as u32)
        .build()
        .user_data(SEND | socket as u64)
}

fn close(socket: RawFd) -> squeue::Entry {
    opcode::Close::new(Fd(socket)).build().user_data(CLOSE)
}

/// Buffers that the kernel fills as data arrives. They live as long as the process.
struct Buffers {
    ring: *mut BufRingEntry,
    memory: *mut u8,
    tail: u16,
}

impl Buffers {
    fn lend(uring: &IoUring) -> io::Result<Self> {
        let ring = pages(usize::from(BUFFERS) * size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        let memory = pages(usize::from(BUFFERS) * BUFFER);
        // SAFETY: the ring is page-aligned, zeroed, as long as it says, and never freed.
        unsafe { uring.submitter().register_buf_ring_with_flags(ring as u64, BUFFERS, GROUP, 0) }?;
        let mut buffers = Self { ring, memory, tail: 0 };
        (0..BUFFERS).for_each(|buffer| buffers.give_back(buffer));
        Ok(buffers)
    }

    /// The first `len` bytes of a buffer that the kernel has filled and not been given back.
    fn get(&self, buffer: u16, len: usize) -> &[u8] {
        // SAFETY: the kernel names only buffers that it was lent, below `BUFFERS`.
        let start = unsafe { self.memory.add(usize::from(buffer) * BUFFER) };
        // SAFETY: it was zeroed at first and filled by the kernel, which leaves it alone until it is given back:
        // through `&mut self`, when this slice is gone.
        unsafe { std::slice::from_raw_parts(start, len.min(BUFFER)) }
    }

    fn give_back(&mut self, buffer: u16) {
        // SAFETY: below the ring's length.
        let entry = unsafe { self.ring.add(usize::from(self.tail % BUFFERS)) };
        // SAFETY: the kernel reads entries up to the tail only, and this one is beyond it; so nobody else has it.
        let entry = unsafe { &mut *entry };
        entry.set_addr(self.memory as u64 + u64::from(buffer) * BUFFER as u64);
        entry.set_len(BUFFER as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: it is the address of the ring's first entry.
        let tail = unsafe { BufRingEntry::tail(self.ring) };
        // SAFETY: aligned, part of the ring, and written by this thread alone; the kernel only reads it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

/// Zeroed, page-aligned memory that is never freed.
fn pages(len: usize) -> *mut u8 {
    let Ok(layout) = Layout::from_size_align(len, 4096) else { unreachable!("a few pages have a layout") };
    // SAFETY: its length is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    memory
}
