//! [`Deliveries`]: bounds the answers on their way from the apply lane to the actor, which hands
//! them to their callers. While there are too many, the lane waits.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use lockstep_core::limits::APPLY_ANSWERS_BYTES_MAX;

/// Bytes of answers that the lane reported and the actor has not handed over yet.
#[derive(Default)]
pub(crate) struct Deliveries {
    bytes: Mutex<usize>,
    fell: Condvar,
}

/// Answers on their way: their bytes count until this value is dropped.
pub(crate) struct Delivery {
    all: Arc<Deliveries>,
    bytes: usize,
}

impl Deliveries {
    /// Waits until `bytes` more may be on their way. If no others are, any number of bytes may be.
    pub(crate) fn begin(self: &Arc<Self>, bytes: usize) -> Delivery {
        let full = |before: &mut usize| *before > 0 && *before + bytes > APPLY_ANSWERS_BYTES_MAX;
        let held = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.fell.wait_while(held, full).unwrap_or_else(PoisonError::into_inner);
        *held += bytes;
        Delivery { all: Arc::clone(self), bytes }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        *self.all.bytes.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        self.all.fell.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// A delivery that does not fit beside the others waits until enough of them were handed over.
    #[test]
    fn many_wait_and_few_do_not() {
        let all = Arc::new(Deliveries::default());
        let few: Vec<Delivery> = (0..4).map(|_| all.begin(APPLY_ANSWERS_BYTES_MAX / 4)).collect();
        let (told, order) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let many = all.begin(16 * APPLY_ANSWERS_BYTES_MAX);
                told.send("many go").expect("somebody listens");
                drop(many);
            });
            for one in few {
                told.send("few are handed over").expect("somebody listens");
                drop(one);
            }
        });
        let told: Vec<_> = order.try_iter().collect();
        let expect = [["few are handed over"; 4].as_slice(), &["many go"]].concat();
        assert_eq!(told, expect);
        assert_eq!(*all.bytes.lock().expect("nobody panicked"), 0);
    }
}
