//! What must be true of every state, and what must be reached so that the rest means something.

use stateright::Property;

use dlock_core::Place;
use dlock_testkit::memory::Request;

use super::world::{Content, World};
use super::{Bounds, Client, Walk, key};

pub(super) fn of(bounds: Bounds) -> Vec<Property<Walk>> {
    let mut properties = promised();
    if bounds.wants[1] > 0 {
        properties.push(Property::sometimes("one holds and the other waits", |_, world: &World| {
            world.clients.iter().any(Client::holds) && world.clients.iter().any(Client::is_acquiring)
        }));
    }
    properties.push(Property::sometimes("two were granted, one after the other", |_, world: &World| {
        world.store.grants(&key()).len() > 1
    }));
    if bounds.cancels > 0 && bounds.slow > 0 {
        properties
            .push(Property::sometimes("a copy of a claim outlives its release", |_, world: &World| outlived_its_release(world)));
    }
    if bounds.pauses > 0 && bounds.place == Place::Queue {
        properties
            .push(Property::sometimes("silence ends belief", |_, world: &World| world.clients.iter().any(Client::lost_by_silence)));
        properties.push(Property::sometimes("another is granted what a paused client held", |_, world: &World| {
            world.clients.iter().any(|client| client.paused && client.holds())
                && world.clients.iter().any(|client| !client.paused && client.believes(world.now))
        }));
    }
    properties
}

fn promised() -> Vec<Property<Walk>> {
    vec![
        Property::always("belief is never false", |_, world: &World| belief_is_true(world)),
        Property::always("two never believe", |_, world: &World| {
            world.interfered || world.clients.iter().filter(|client| client.believes(world.now)).count() <= 1
        }),
        Property::always("tokens grow", |_, world: &World| {
            world.store.grants(&key()).windows(2).all(|pair| pair[0].token < pair[1].token)
        }),
        Property::always("what was undone stays undone", |_, world: &World| {
            world.store.claims().iter().all(|(_, _, claim)| !world.undone.contains(claim))
        }),
        Property::always("no orphan is renewed", |_, world: &World| {
            let answered = |(_, session, claim): &(_, _, _)| world.clients.iter().all(|client| client.answers_for(session, *claim));
            world.store.claims().iter().all(answered)
        }),
        Property::always("nobody is stuck", |_, world: &World| !world.clients.iter().any(Client::is_stuck)),
        Property::always("the resource accepts nothing older than before", |_, world: &World| !world.overwritten),
    ]
}

/// Unless an operator interfered, what a client believes to hold is what the store says holds.
fn belief_is_true(world: &World) -> bool {
    let holder = world.store.holder_of(&key()).map(|(_, claim, _)| claim);
    world.interfered || world.clients.iter().filter_map(|client| client.believed(world.now)).all(|claim| Some(claim) == holder)
}

/// Whether a copy of a claim is under way whose release was answered.
fn outlived_its_release(world: &World) -> bool {
    world.messages.iter().any(|message| match &message.content {
        Content::Request(Request::Claim { claim, .. }) => world.undone.contains(&claim.id),
        _ => false,
    })
}
