//! Sandboxes with name spaces of their own: the same port in each, calls over a bridge, and to a service's address that
//! iptables translates.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::{
    agent::Agent,
    container::{Container, Networks, Spec, private},
    containers::path_of,
    harness::{id, leaf, plan},
    sandbox::Slice,
    truth,
};

const PORT: u16 = 8080;

struct Shop {
    networks: Networks,
    front: Container,
    stock: Container,
    price: Container,
    /// Where `price` is to be called.
    service: SocketAddr,
}

/// Three functions on one port: two at a bridge, the third behind the address of a service.
fn shop(slice: &Slice) -> Shop {
    let mut networks = Networks::new();
    let service = SocketAddr::from(([10, 96, 0, 1], 80));
    let mut start = |name: &'static str, address: SocketAddr, at_bridge: bool| {
        let SocketAddr::V4(v4) = address else { panic!("{address}") };
        let network = networks.sandbox(name, *v4.ip(), at_bridge);
        let id = format!("{network}-{name}");
        Spec { network: Some(network), address, user: name == "stock", ..Spec::new(id, name, name) }.start(slice)
    };
    let front = start("front", private(1, 2, PORT), true);
    let stock = start("stock", private(1, 3, PORT), true);
    let price = start("price", private(2, 2, PORT), false);
    networks.service(service, price.address);
    let (front, stock, price) = networks.on_host(|| (front.wait(), stock.wait(), price.wait()));
    Shop { networks, front, stock, price, service }
}

impl Shop {
    /// The front calls stock over the bridge, and price by the service's address.
    fn run(&self, id: &str) -> Value {
        let at = |address: SocketAddr| json!({"url": format!("http://{address}"), "mode": "seq", "plan": leaf()});
        let tree = plan([at(self.stock.address), at(self.service)]);
        self.networks.on_host(|| self.front.client().run(id, &tree))
    }
}

#[test]
fn calls_between_name_spaces_are_joined_by_the_tag_also_through_address_translation() {
    let slice = Slice::new();
    let shop = shop(&slice);
    let agent = Agent::start(&slice);
    let answers = [shop.run(&id("spaces")), shop.run(&id("spaces"))];
    let (trace, finished) = truth::assert_traced(agent, &answers);
    assert_eq!(trace.len(), 6);
    let peers: Vec<_> = truth::calls(&finished.lines).into_iter().map(|call| &call["peer"]).collect();
    let [stock, service] = [shop.stock.address, shop.service].map(|address| json!(address.to_string()));
    assert_eq!(peers, [&stock, &service, &stock, &service], "as the caller addressed them");
    // The process's number is the host's, not that of its own name space.
    for (key, traced) in &trace {
        let pid = traced.node["pid"].as_u64().unwrap();
        let name = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        assert!(name.contains(&slice.argument()) && name.contains(&key.function), "{key}: {pid} is in {name}");
    }
    drop(shop.price);
}

#[test]
fn without_a_tag_the_wire_joins_where_addresses_stay_the_same() {
    let slice = Slice::new();
    let shop = shop(&slice);
    let agent = Agent::start_with(&slice, &["--tag", "off"]);
    let request = id("wire");
    let answer = shop.run(&request);
    assert_eq!(answer["children"][0]["traceparent"], Value::Null);
    let path = agent.wait_for("the path", |lines| path_of(lines, &request));
    let calls = path["root"]["children"].as_array().unwrap();
    let [over_bridge, translated] = calls.as_slice() else { panic!("{path}") };
    let stock = &over_bridge["children"][0];
    assert_eq!((&stock["function"], &stock["joined_by"]), (&json!("stock"), &json!("wire")), "{path}");
    // Its two ends have different addresses: that they are one is not known, and not said.
    assert_eq!(translated["children"], json!([]), "{path}");
    let price = agent.wait_for("the other path", |lines| path_of(lines, &format!("{request}.1")));
    assert_eq!((&price["root"]["function"], &price["root"]["joined_by"]), (&json!("price"), &Value::Null), "{price}");
    agent.stop();
}
