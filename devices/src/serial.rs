//! COM1: a 16550A at port 0x3f8, on `vm-superio`.

use std::convert::Infallible;
use std::io::Write;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{Error, NoEvents};

use crate::bus::ByteRegisters;
use crate::interrupt::InterruptLine;

/// The ports of COM1.
pub const COM1_PORTS: RangeInclusive<u16> = 0x3f8..=0x3ff;

/// The interrupt of COM1 (ISA IRQ and GSI).
pub const COM1_GSI: u32 = 4;

/// Offset of the modem control register and its loopback bit (16550 datasheet, "Modem Control Register").
const MODEM_CONTROL: u16 = 4;

type Uart = vm_superio::Serial<Edge, NoEvents, Box<dyn Write + Send>>;

/// The console's serial port.
pub struct Serial {
    uart: Mutex<Uart>,
    /// Whether [`Serial::enqueue`] left bytes behind, and its caller waits to be told of room.
    short: AtomicBool,
    room: Box<dyn Fn() + Send + Sync>,
}

/// ISA interrupts are edges; the UART asks for one at a time.
struct Edge(Arc<dyn InterruptLine>);

impl Trigger for Edge {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.raise();
        self.0.lower();
        self.0.deliver();
        Ok(())
    }
}

impl Serial {
    /// A port that interrupts by `line` and sends what the guest writes to `output`, byte by byte and flushed.
    ///
    /// `room` is called, on a vCPU thread and with no lock held, when the guest has made room after an
    /// [`Serial::enqueue`] that did not take all.
    pub fn new(
        line: Arc<dyn InterruptLine>,
        output: Box<dyn Write + Send>,
        room: Box<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        Arc::new(Self {
            uart: Mutex::new(Uart::new(Edge(line), output)),
            short: AtomicBool::new(false),
            room,
        })
    }

    /// Gives input to the guest. Returns how many bytes the receive FIFO (64 bytes) took; for the others, offer them
    /// again once `room` was called.
    pub fn enqueue(&self, input: &[u8]) -> usize {
        let mut uart = self.lock();
        let taken = match uart.enqueue_raw_bytes(input) {
            Ok(taken) => taken,
            Err(Error::FullFifo) => 0,
            Err(error) => {
                tracing::debug!(%error, "COM1 refused input");
                0
            }
        };
        // Noted under the lock, so that the guest's next read cannot slip in between.
        if taken < input.len() {
            self.short.store(true, Ordering::SeqCst);
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the owner of waiting input that the FIFO has room.
    fn announce_room(&self) {
        if self.short.swap(false, Ordering::SeqCst) {
            (self.room)();
        }
    }
}

impl ByteRegisters for Serial {
    fn read_byte(&self, port: u16) -> u8 {
        let offset = (port - COM1_PORTS.start()) as u8;
        let mut uart = self.lock();
        let before = uart.fifo_capacity();
        let value = uart.read(offset);
        // Waking the owner for every byte would be a wake-up per byte; half a FIFO keeps the line busy.
        let room = uart.fifo_capacity() > before && uart.fifo_capacity() >= 32;
        drop(uart);
        if room {
            self.announce_room();
        }
        value
    }

    fn write_byte(&self, port: u16, value: u8) {
        let offset = port - COM1_PORTS.start();
        let outcome = self.lock().write(offset as u8, value);
        if let Err(error) = outcome {
            tracing::debug!(%error, "COM1 output lost");
        }
        // In loopback mode the UART takes no input; leaving it makes room.
        if offset == MODEM_CONTROL {
            self.announce_room();
        }
    }
}
