//! Typed access to a node's attributes, noticing those that nothing asked for.

use super::external::ExternalFiles;
use super::proto::{self, kind};
use super::tensor;
use crate::graph::{RawAttribute, TensorData};
use prost::Message;
use std::{cell::RefCell, collections::BTreeSet};

/// The attributes of one node. The errors are reasons for not running the node.
pub(super) struct Attributes<'a> {
    all: &'a [proto::Attribute],
    asked: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(all: &'a [proto::Attribute]) -> Self {
        Self {
            all,
            asked: RefCell::new(BTreeSet::new()),
        }
    }

    fn get(&self, name: &'static str, kind: i32) -> Result<Option<&'a proto::Attribute>, String> {
        self.ignore(name);
        let Some(found) = self.all.iter().find(|a| a.name.as_deref() == Some(name)) else {
            return Ok(None);
        };
        if found
            .ref_attr_name
            .as_deref()
            .is_some_and(|r| !r.is_empty())
        {
            return Err(format!("attribute {name} refers to a function's attribute"));
        }
        match kind_of(found) {
            k if k == kind => Ok(Some(found)),
            k => Err(format!(
                "attribute {name} has kind {k}, not {kind} as it should"
            )),
        }
    }

    /// Marks an attribute that doesn't matter for what is computed.
    pub(super) fn ignore(&self, name: &'static str) {
        self.asked.borrow_mut().insert(name);
    }

    /// The first attribute that nothing asked for.
    pub(super) fn left_over(&self) -> Option<&'a str> {
        let asked = self.asked.borrow();
        self.all
            .iter()
            .map(|a| a.name.as_deref().unwrap_or(""))
            .find(|name| !asked.contains(name))
    }

    pub(super) fn int(&self, name: &'static str, default: i64) -> Result<i64, String> {
        Ok(self.optional_int(name)?.unwrap_or(default))
    }

    pub(super) fn optional_int(&self, name: &'static str) -> Result<Option<i64>, String> {
        Ok(self.get(name, kind::INT)?.map(|a| a.i.unwrap_or(0)))
    }

    pub(super) fn required_int(&self, name: &'static str) -> Result<i64, String> {
        self.optional_int(name)?
            .ok_or_else(|| format!("attribute {name} is missing"))
    }

    pub(super) fn flag(&self, name: &'static str, default: bool) -> Result<bool, String> {
        Ok(self.int(name, i64::from(default))? != 0)
    }

    pub(super) fn float(&self, name: &'static str, default: f32) -> Result<f32, String> {
        Ok(self.optional_float(name)?.unwrap_or(default))
    }

    pub(super) fn optional_float(&self, name: &'static str) -> Result<Option<f32>, String> {
        Ok(self.get(name, kind::FLOAT)?.map(|a| a.f.unwrap_or(0.0)))
    }

    pub(super) fn string(&self, name: &'static str, default: &str) -> Result<String, String> {
        Ok(self.get(name, kind::STRING)?.map_or_else(
            || default.to_string(),
            |a| String::from_utf8_lossy(a.s.as_deref().unwrap_or(b"")).into_owned(),
        ))
    }

    pub(super) fn ints(&self, name: &'static str) -> Result<Option<&'a [i64]>, String> {
        Ok(self.get(name, kind::INTS)?.map(|a| &a.ints[..]))
    }

    /// Extents, strides and the like: whole numbers from `least` up.
    pub(super) fn sizes(
        &self,
        name: &'static str,
        least: i64,
    ) -> Result<Option<Vec<usize>>, String> {
        let Some(ints) = self.ints(name)? else {
            return Ok(None);
        };
        let size = |&v: &i64| {
            usize::try_from(v)
                .ok()
                .filter(|_| v >= least && v <= i64::from(i32::MAX))
                .ok_or_else(|| format!("attribute {name} holds {v}"))
        };
        ints.iter().map(size).collect::<Result<_, _>>().map(Some)
    }

    pub(super) fn tensor(&self, name: &'static str) -> Result<Option<&'a proto::Tensor>, String> {
        Ok(self.get(name, kind::TENSOR)?.and_then(|a| a.t.as_ref()))
    }
}

/// The attribute's kind; where a file doesn't say, that of the field it fills.
fn kind_of(a: &proto::Attribute) -> i32 {
    match a.kind {
        Some(k) if k != 0 => k,
        _ if a.f.is_some() => kind::FLOAT,
        _ if a.i.is_some() => kind::INT,
        _ if a.s.is_some() => kind::STRING,
        _ if a.t.is_some() => kind::TENSOR,
        _ if a.g.is_some() => kind::GRAPH,
        _ if !a.floats.is_empty() => kind::FLOATS,
        _ if !a.strings.is_empty() => kind::STRINGS,
        _ => kind::INTS,
    }
}

/// Keeps an attribute as it is, for writing it back.
pub(super) fn keep(
    a: &proto::Attribute,
    external: &mut ExternalFiles,
) -> Result<RawAttribute, String> {
    let is_reference = a.ref_attr_name.as_deref().is_some_and(|r| !r.is_empty());
    Ok(match kind_of(a) {
        _ if is_reference => RawAttribute::Encoded(a.encode_to_vec()),
        kind::FLOAT => RawAttribute::Float(a.f.unwrap_or(0.0)),
        kind::INT => RawAttribute::Int(a.i.unwrap_or(0)),
        kind::STRING => RawAttribute::String(a.s.as_deref().unwrap_or(b"").to_vec()),
        kind::FLOATS => RawAttribute::Floats(a.floats.clone()),
        kind::INTS => RawAttribute::Ints(a.ints.clone()),
        kind::STRINGS => RawAttribute::Strings(a.strings.iter().map(|s| s.to_vec()).collect()),
        kind::TENSOR => match a.t.as_ref().filter(|t| tensor::is_known(t)) {
            Some(t) => RawAttribute::Tensor(
                tensor::read(t, external)
                    .map_err(|e| format!("attribute {}: {e}", a.name.as_deref().unwrap_or("")))?,
            ),
            None => RawAttribute::Encoded(a.encode_to_vec()),
        },
        _ => RawAttribute::Encoded(a.encode_to_vec()),
    })
}

/// The value of a Constant node, `None` where it is of a kind that the IR doesn't carry (strings, sparse).
pub(super) fn constant(
    a: &proto::Attribute,
    external: &mut ExternalFiles,
) -> Result<Option<TensorData>, String> {
    Ok(match a.name.as_deref().unwrap_or("") {
        "value" => match a.t.as_ref() {
            Some(t) if tensor::is_known(t) => Some(tensor::read(t, external)?),
            Some(_) => None,
            None => return Err("its value is not a tensor".into()),
        },
        "value_float" => Some(TensorData::scalar(a.f.unwrap_or(0.0))),
        "value_int" => Some(TensorData::scalar_i64(a.i.unwrap_or(0))),
        "value_floats" => Some(TensorData::from_f32(&[a.floats.len()], &a.floats)),
        "value_ints" => Some(TensorData::from_i64(&[a.ints.len()], &a.ints)),
        _ => None,
    })
}
