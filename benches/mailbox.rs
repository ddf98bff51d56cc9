//! What a message between two actors costs.

use std::hint::black_box;
use std::sync::Arc;
use std::thread;

use criterion::{Criterion, criterion_group, criterion_main};
use harmonia::mailbox::bounded;

fn mailbox(criterion: &mut Criterion) {
    let (sender, receiver) = bounded::<u64>(1024, None);
    criterion.bench_function("mailbox/send and receive", |b| {
        b.iter(|| sender.try_send(black_box(1)).is_ok().then(|| receiver.try_recv()));
    });
    criterion.bench_function("mailbox/nothing there", |b| b.iter(|| receiver.try_recv()));

    let (woken, _kept) = bounded::<u64>(1, Some(Arc::new(|| ())));
    let _ = woken.try_send(1);
    criterion.bench_function("mailbox/full", |b| b.iter(|| woken.try_send(black_box(2)).is_err()));

    // To an actor on another thread and back: two wakes of a thread.
    let (questions, asked) = bounded::<u64>(16, None);
    let (answers, answered) = bounded::<u64>(16, None);
    let actor = thread::spawn(move || {
        while let Some(question) = asked.recv() {
            answers.send(question + 1);
        }
    });
    criterion.bench_function("mailbox/question and answer", |b| {
        b.iter(|| {
            questions.send(black_box(1));
            answered.recv()
        });
    });
    drop(questions);
    actor.join().expect("the actor ends when nobody is left to ask");
}

criterion_group!(benches, mailbox);
criterion_main!(benches);
