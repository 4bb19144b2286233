//! Transactions.

use podkv_api::{
    Compare, CompareOp, CompareTarget, DeleteResponse, Header, Op, OpResponse, PutResponse,
    RangeResponse, Txn, TxnResponse,
};

use super::kv::{inherit_header, omit_header};
use super::{Malformed, header, key_range, lease_to_wire, optional_lease_id};
use crate::v1;
use crate::v1::compare::{Operator, Target};
use crate::v1::operation::Operation;
use crate::v1::operation_response::Response;

impl From<Compare> for v1::Compare {
    fn from(compare: Compare) -> Self {
        let operator = match compare.op {
            CompareOp::Equal => Operator::Equal,
            CompareOp::NotEqual => Operator::NotEqual,
            CompareOp::Greater => Operator::Greater,
            CompareOp::Less => Operator::Less,
        };
        let target = match compare.target {
            CompareTarget::Value(value) => Target::Value(value),
            CompareTarget::Version(version) => Target::Version(version),
            CompareTarget::CreateRevision(revision) => Target::CreateRevision(revision),
            CompareTarget::ModRevision(revision) => Target::ModRevision(revision),
            CompareTarget::Lease(lease) => Target::Lease(lease_to_wire(lease)),
        };
        Self {
            range: Some(compare.range.into()),
            operator: operator.into(),
            target: Some(target),
        }
    }
}

impl TryFrom<v1::Compare> for Compare {
    type Error = Malformed;

    fn try_from(compare: v1::Compare) -> Result<Self, Malformed> {
        let op = match Operator::try_from(compare.operator) {
            Ok(Operator::Equal) => CompareOp::Equal,
            Ok(Operator::NotEqual) => CompareOp::NotEqual,
            Ok(Operator::Greater) => CompareOp::Greater,
            Ok(Operator::Less) => CompareOp::Less,
            Err(unknown) => return Err(Malformed::request("operator", unknown.to_string())),
        };
        let target = match compare.target {
            Some(Target::Value(value)) => CompareTarget::Value(value),
            Some(Target::Version(version)) => CompareTarget::Version(version),
            Some(Target::CreateRevision(revision)) => CompareTarget::CreateRevision(revision),
            Some(Target::ModRevision(revision)) => CompareTarget::ModRevision(revision),
            Some(Target::Lease(lease)) => CompareTarget::Lease(optional_lease_id(lease)),
            None => {
                return Err(Malformed::request(
                    "target",
                    "not set; expected value, version, create_revision, mod_revision or lease",
                ));
            }
        };
        Ok(Self {
            range: key_range(compare.range)?,
            op,
            target,
        })
    }
}

impl From<Op> for v1::Operation {
    fn from(op: Op) -> Self {
        let operation = match op {
            Op::Put(put) => Operation::Put(put.into()),
            Op::Delete(delete) => Operation::Delete(delete.into()),
            Op::Range(range) => Operation::Range(range.into()),
            Op::Txn(txn) => Operation::Txn(txn.into()),
        };
        Self {
            operation: Some(operation),
        }
    }
}

impl TryFrom<v1::Operation> for Op {
    type Error = Malformed;

    fn try_from(operation: v1::Operation) -> Result<Self, Malformed> {
        let within = |name: &'static str| move |malformed: Malformed| malformed.within(name);
        match operation.operation {
            Some(Operation::Put(put)) => Ok(Op::Put(put.try_into().map_err(within("put"))?)),
            Some(Operation::Delete(delete)) => {
                Ok(Op::Delete(delete.try_into().map_err(within("delete"))?))
            }
            Some(Operation::Range(range)) => {
                Ok(Op::Range(range.try_into().map_err(within("range"))?))
            }
            Some(Operation::Txn(txn)) => Ok(Op::Txn(txn.try_into().map_err(within("txn"))?)),
            None => Err(Malformed::request(
                "operation",
                "not set; expected put, delete, range or txn",
            )),
        }
    }
}

impl From<Txn> for v1::TxnRequest {
    /// Without a session stamp, and linearizable.
    fn from(txn: Txn) -> Self {
        Self {
            compare: txn.compare.into_iter().map(Into::into).collect(),
            then: txn.then.into_iter().map(Into::into).collect(),
            or_else: txn.or_else.into_iter().map(Into::into).collect(),
            session: None,
            consistency: None,
        }
    }
}

impl TryFrom<v1::TxnRequest> for Txn {
    type Error = Malformed;

    /// Leaves the session stamp and the consistency aside: they belong to the call.
    fn try_from(txn: v1::TxnRequest) -> Result<Self, Malformed> {
        Ok(Self {
            compare: list("compare", txn.compare)?,
            then: list("then", txn.then)?,
            or_else: list("or_else", txn.or_else)?,
        })
    }
}

/// Converts a repeated field; what is malformed is named with its place.
fn list<T, U>(name: &str, items: Vec<T>) -> Result<Vec<U>, Malformed>
where
    U: TryFrom<T, Error = Malformed>,
{
    items
        .into_iter()
        .enumerate()
        .map(|(place, item)| {
            U::try_from(item).map_err(|malformed| malformed.within(format_args!("{name}[{place}]")))
        })
        .collect()
}

impl From<TxnResponse> for v1::TxnResponse {
    fn from(response: TxnResponse) -> Self {
        let header = response.header;
        let to_wire = |response| operation_response(response, header);
        Self {
            header: Some(header.into()),
            succeeded: response.succeeded,
            responses: response.responses.into_iter().map(to_wire).collect(),
        }
    }
}

fn operation_response(response: OpResponse, outer: Header) -> v1::OperationResponse {
    let mut response = match response {
        OpResponse::Put(put) => Response::Put(put.into()),
        OpResponse::Delete(delete) => Response::Delete(delete.into()),
        OpResponse::Range(range) => Response::Range(range.into()),
        OpResponse::Txn(txn) => Response::Txn(txn.into()),
    };
    omit_header(own_header(&mut response), outer);
    v1::OperationResponse {
        response: Some(response),
    }
}

fn own_header(response: &mut Response) -> &mut Option<v1::Header> {
    match response {
        Response::Put(put) => &mut put.header,
        Response::Delete(delete) => &mut delete.header,
        Response::Range(range) => &mut range.header,
        Response::Txn(txn) => &mut txn.header,
    }
}

impl TryFrom<v1::TxnResponse> for TxnResponse {
    type Error = Malformed;

    fn try_from(response: v1::TxnResponse) -> Result<Self, Malformed> {
        let header = header(response.header)?;
        let from_wire = |(place, response)| {
            op_response(response, header)
                .map_err(|malformed| malformed.within(format_args!("responses[{place}]")))
        };
        Ok(Self {
            header,
            succeeded: response.succeeded,
            responses: response
                .responses
                .into_iter()
                .enumerate()
                .map(from_wire)
                .collect::<Result<_, _>>()?,
        })
    }
}

fn op_response(response: v1::OperationResponse, outer: Header) -> Result<OpResponse, Malformed> {
    let Some(mut response) = response.response else {
        return Err(Malformed::answer("response", "not set"));
    };
    inherit_header(own_header(&mut response), outer);
    Ok(match response {
        Response::Put(put) => OpResponse::Put(PutResponse::try_from(put)?),
        Response::Delete(delete) => OpResponse::Delete(DeleteResponse::try_from(delete)?),
        Response::Range(range) => OpResponse::Range(RangeResponse::try_from(range)?),
        Response::Txn(txn) => OpResponse::Txn(TxnResponse::try_from(txn)?),
    })
}
